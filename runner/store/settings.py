"""The files that keep what was configured for each model, one file for one model, named by its digest.

Owns their format and what becomes of a damaged one: it is kept aside, named, and costs no other model
anything. A file is replaced whole, so that a change to one value shows the old or the new configuration, with
everything else in it (S18). Imports the layout, the disk and the domain. Blocks, so it belongs in a
thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

import attrs
import orjson

from runner.domain.settings import NOTHING, ModelSettings, read_settings, write_settings
from runner.errors import InvalidParameter, StartRefused, StoreDamaged, StoreError
from runner.oci.digest import ALGORITHM, Digest
from runner.store.disk import Disk
from runner.store.layout import StoreLayout

FORMAT_VERSION: Final = 1
"""Goes up with every new setting, since a version that does not know a setting would lose it."""
FILE_BYTES_MAX: Final = 2 * 1024 * 1024  # a template, with every character escaped, and a little more

_NAME = re.compile(r"([0-9a-f]{64})(?:\.damaged)?\.json")


def encode(model_id: Digest, settings: ModelSettings) -> bytes:
    """The content of a file. Equal settings give equal bytes."""
    document = {
        "version": FORMAT_VERSION,
        "model": str(model_id),
        "settings": write_settings(settings),
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def parse(model_id: Digest, content: bytes) -> ModelSettings:
    """What a file holds. Raises StoreDamaged, and StartRefused when a newer version wrote it."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise StoreDamaged("is no JSON") from None
    if not isinstance(document, dict):
        raise StoreDamaged("is no object")
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise StoreDamaged("names no version of its format")
    if version > FORMAT_VERSION:
        raise StartRefused(
            f"the settings of model {model_id.short()} were written by a newer version of this program "
            f"(format {version}, this one knows {FORMAT_VERSION}); upgrade, "
            f"or choose another directory with --store"
        )
    if document.keys() != {"version", "model", "settings"}:
        raise StoreDamaged("has other members than it should")
    if document["model"] != str(model_id):
        raise StoreDamaged("is about another model")
    return _settings_of(document["settings"])


def _settings_of(values: object) -> ModelSettings:
    if not isinstance(values, dict):
        raise StoreDamaged("holds no settings")
    try:
        return read_settings(values)
    except InvalidParameter as error:
        raise StoreDamaged(str(error)) from None


@attrs.frozen(kw_only=True)
class FoundSettings:
    """`notices` are sentences for the log."""

    settings: Mapping[Digest, ModelSettings]
    notices: tuple[str, ...] = ()


@attrs.frozen
class SettingsFiles:
    """All of them. `_replace` writes a file whole, as `StoreDirectory.replace` does."""

    _layout: StoreLayout
    _disk: Disk
    _replace: Callable[[Path, bytes], None]

    def read_all(self) -> FoundSettings:
        """What is configured; damaged files are set aside. Raises StartRefused for a newer version's file."""
        settings: dict[Digest, ModelSettings] = {}
        notices: list[str] = []
        for model_id, path in self._files():
            if path == self._layout.damaged_settings(model_id):
                continue
            try:
                content = self._disk.read(path, limit_bytes=FILE_BYTES_MAX)
                settings[model_id] = parse(model_id, content or b"")
            except StoreError as error:
                notices.append(self._set_aside(model_id, str(error)))
        return FoundSettings(settings=settings, notices=tuple(notices))

    def write(self, model_id: Digest, settings: ModelSettings) -> None:
        """Keep these from now on; no file stands for nothing configured."""
        if settings == NOTHING:
            self._unlink([self._layout.settings_of(model_id)])
        else:
            self._replace(self._layout.settings_of(model_id), encode(model_id, settings))

    def drop(self, model_id: Digest) -> None:
        """Whatever is kept of this model, a damaged file included."""
        self._unlink([path for owner_id, path in self._files() if owner_id == model_id])

    def drop_all_but(self, model_ids: Collection[Digest]) -> None:
        """What is left of models that are not there any more."""
        self._unlink([path for owner_id, path in self._files() if owner_id not in model_ids])

    def _files(self) -> list[tuple[Digest, Path]]:
        """Our files with the models they are about. What else lies there, directories too, is not ours."""
        found = []
        for name in self._disk.names(self._layout.settings):
            match, path = _NAME.fullmatch(name), self._layout.settings / name
            if match is not None and (path.is_symlink() or not path.is_dir()):
                found.append((Digest.parse(f"{ALGORITHM}:{match[1]}"), path))
        return found

    def _unlink(self, paths: list[Path]) -> None:
        for path in paths:
            self._disk.unlink(path)
        if paths:
            self._disk.sync_directory(self._layout.settings)

    def _set_aside(self, model_id: Digest, reason: str) -> str:
        """Keep the file for a look, where the next write does not replace it. Says what was done."""
        source, target = self._layout.settings_of(model_id), self._layout.damaged_settings(model_id)
        told = f"the settings of model {model_id.short()} cannot be used ({reason}), so it has none"
        try:
            self._disk.rename(source, target)
            self._disk.sync_directory(self._layout.settings)
        except StoreError as error:
            return f"{told}; {source.name} could not be set aside: {error}"
        return f"{told}; the file is kept as {self._layout.settings.name}/{target.name}"
