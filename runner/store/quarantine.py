"""The file in which models that crash the engine while they load are remembered, across restarts.

One small JSON document beside the index, written whole (S17). It is read strictly, since what it says keeps
models from being loaded. Imports the layout, the disk and domain values. Calls wait for the disk: call from a
thread, while this process owns the store. Read on in `actors/quarantine.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from runner.domain.quarantine import FailedLoads
from runner.errors import StoreDamaged
from runner.store.directory import StoreDirectory
from runner.store.disk import Disk
from runner.store.layout import StoreLayout

BYTES_MAX: Final = 1024 * 1024
_VERSION: Final = 1
_TEXT_MAX: Final = 1000
_FIELDS: Final = {field.name for field in attrs.fields(FailedLoads)}


class QuarantineFile:
    """`quarantine.json` of the store at `root`."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._layout = StoreLayout(root)
        self._disk = disk if disk is not None else Disk()

    def read(self) -> tuple[FailedLoads, ...]:
        """What was written last, nothing at first. Raises StoreDamaged for anything else that lies there."""
        content = self._disk.read(self._layout.quarantine, limit_bytes=BYTES_MAX)
        return () if content is None else _parse(content)

    def write(self, records: tuple[FailedLoads, ...]) -> None:
        """Replace it. Raises DiskFull or StoreError; then the former content is there."""
        document = {"version": _VERSION, "models": [attrs.asdict(record) for record in records]}
        content = orjson.dumps(document, option=orjson.OPT_INDENT_2)
        StoreDirectory(self._layout, self._disk).replace(self._layout.quarantine, content)


def _parse(content: bytes) -> tuple[FailedLoads, ...]:
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise StoreDamaged(f"{_NAME} is not JSON") from None
    match document:
        case {"version": 1, "models": list(models)}:
            return tuple(map(_record, models))
    raise StoreDamaged(f"{_NAME} is of another version, or damaged")


def _record(fields: Any) -> FailedLoads:
    """Of exactly our fields, each of its type and of bounded length."""
    if not isinstance(fields, dict) or fields.keys() != _FIELDS or not all(map(_is_valid, fields.items())):
        raise StoreDamaged(f"{_NAME} holds something else than models")
    return FailedLoads(**fields)


def _is_valid(field: tuple[str, Any]) -> bool:
    name, value = field
    if name == "crashes":
        return type(value) is int and value >= 1
    return isinstance(value, str) and len(value) <= _TEXT_MAX


_NAME: Final = StoreLayout(Path()).quarantine.name
