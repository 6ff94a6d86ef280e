"""Between the shapes of Docker Model Runner and ours; pure.

The native model object, and progress as lines of JSON. In text mode a line is escaped as for HTML, which is
what clients that send no `Accept` undo before they parse it.
"""

from __future__ import annotations

from typing import Any, Final

import attrs
import orjson

from runner.api.errors import refusal_of
from runner.domain.status import ModelReport, Removal
from runner.domain.transfer import LayerProgress, TransferDirection, TransferProgress, TransferResult

EVERY_S: Final = 0.1
EVERY_BYTES: Final = 1 << 20
_ESCAPES: Final = str.maketrans({"&": "&amp;", "'": "&#39;", "<": "&lt;", ">": "&gt;", '"': "&#34;"})
_DOING: Final = {TransferDirection.PULL: "Downloaded", TransferDirection.PUSH: "Uploaded"}
_DONE: Final = {
    TransferDirection.PULL: "Model pulled successfully",
    TransferDirection.PUSH: "Model pushed successfully",
}
_UNITS: Final = (("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20), ("MB", 10**6), ("KiB", 2**10), ("KB", 10**3))


def model_object(report: ModelReport, *, is_remote: bool = False) -> dict[str, Any]:
    """The native object; members that are unknown, and the tags of a model without any, are left out."""
    model = report.model
    config = {
        "format": model.format,
        "quantization": model.quantization,
        "parameters": model.parameters,
        "architecture": model.architecture,
        "size": report.described_size or size_text(model.size_bytes),
        "gguf": report.metadata,
        "context_size": report.described_context_size or model.context_size,
    }
    tags = {"tags": list(model.tags)} if model.tags and not is_remote else {}
    return {
        "id": model.id,
        **tags,
        "created": model.created_s,
        "config": {name: value for name, value in config.items() if value},
    }


def size_text(size_bytes: int) -> str:
    """`256.35MiB`: the largest unit that fits, two decimals unless both are zero."""
    for unit, base in _UNITS:
        if size_bytes >= base:
            return f"{size_bytes / base:.2f}".removesuffix(".00") + unit
    return f"{size_bytes}B"


def removal_object(removal: Removal) -> dict[str, str]:
    if removal.untagged is not None:
        return {"Untagged": removal.untagged}
    return {"Deleted": removal.deleted or ""}


def escaped(text: str) -> str:
    """As Go's html package escapes."""
    return text.translate(_ESCAPES)


def line(
    kind: str,
    message: str,
    direction: TransferDirection,
    *,
    is_json: bool,
    total: int = 0,
    layer_id: str | None = None,
    size: int = 0,
    current: int = 0,
) -> bytes:
    """One line of progress, success, warning or error. Sizes in bytes."""
    identity = {} if layer_id is None else {"id": layer_id}
    content = orjson.dumps(
        {
            "type": kind,
            "message": message,
            "total": total,
            "layer": {**identity, "size": size, "current": current},
            "mode": direction.value,
        }
    )
    return (content if is_json else escaped(content.decode()).encode()) + b"\n"


@attrs.frozen
class _Told:
    """What was last said of a layer, and when."""

    done_bytes: int
    at_s: float


class ProgressLines:
    """The `LineEncoder` of this dialect.

    A line for each layer that got on: when a tenth of a second has passed since its last one, when a MiB was
    added, or when it is complete. What was there before a pull has no line; before a push, just one.
    """

    def __init__(self, direction: TransferDirection, *, is_json: bool) -> None:
        self._direction = direction
        self._is_json = is_json
        self._told: dict[str, _Told] = {}
        self._noted: set[str] = set()

    def progress(self, progress: TransferProgress, now_s: float) -> bytes:
        notes = [self._note(note) for note in progress.notes if note not in self._noted]
        self._noted.update(progress.notes)
        lines = [
            self._layer(layer, progress.total_bytes) for layer in progress.layers if self._take(layer, now_s)
        ]
        return b"".join(notes + lines)

    def repeated(self, progress: TransferProgress) -> bytes:
        """Of the largest layer that is under way; without one, a line of no layer."""
        under_way = [layer for layer in progress.layers if layer.done_bytes < layer.size_bytes]
        if not under_way:
            return self._note("")
        return self._layer(max(under_way, key=lambda layer: layer.size_bytes), progress.total_bytes)

    def result(self, result: TransferResult) -> bytes:
        if result.was_cached and self._direction is TransferDirection.PULL:
            return self._end("success", f"Using cached model: {size_text(result.size_bytes)}")
        return self._end("success", _DONE[self._direction])

    def error(self, error: Exception) -> bytes:
        return self._end("error", f"Error: {refusal_of(error).message}")

    def _take(self, layer: LayerProgress, now_s: float) -> bool:
        """Whether a line is due, which is noted."""
        told = self._told.get(layer.digest)
        is_complete = layer.done_bytes >= layer.size_bytes
        if told is None:
            is_due = self._direction is TransferDirection.PUSH or not is_complete
        elif told.done_bytes == layer.done_bytes:
            return False
        else:
            is_due = (
                is_complete
                or now_s - told.at_s >= EVERY_S
                or abs(layer.done_bytes - told.done_bytes) >= EVERY_BYTES
            )
        if is_due or told is None:
            self._told[layer.digest] = _Told(layer.done_bytes, now_s)
        return is_due

    def _layer(self, layer: LayerProgress, total_bytes: int) -> bytes:
        return line(
            "progress",
            f"{_DOING[self._direction]}: {layer.done_bytes / 2**20:.2f} MB",
            self._direction,
            is_json=self._is_json,
            total=total_bytes,
            layer_id=layer.digest,
            size=layer.size_bytes,
            current=layer.done_bytes,
        )

    def _note(self, text: str) -> bytes:
        return line("progress", text, self._direction, is_json=self._is_json)

    def _end(self, kind: str, text: str) -> bytes:
        return line(kind, text, self._direction, is_json=self._is_json)
