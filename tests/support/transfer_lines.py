"""What the control API says of a transfer, line by line, as a scripted server sends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.scripted_server import STREAM_END, chunk

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
ID = "sha256:" + "0123456789abcdef" * 4
MIB = 1 << 20


def layer(
    done_bytes: int, size_bytes: int = 100 * MIB, title: str | None = "m.gguf", number: int = 0
) -> dict[str, Any]:
    return {
        "digest": f"sha256:{number:02x}" + "f" * 62,
        "kind": "gguf",
        "title": title,
        "size_bytes": size_bytes,
        "done_bytes": done_bytes,
    }


def progress(
    *layers: dict[str, Any],
    phase: str = "transferring",
    position: int | None = None,
    notes: tuple[str, ...] = (),
    direction: str = "pull",
) -> dict[str, Any]:
    return {
        "type": "progress",
        "direction": direction,
        "phase": phase,
        "queue_position": position,
        "layers": list(layers),
        "total_bytes": sum(one["size_bytes"] for one in layers),
        "done_bytes": sum(one["done_bytes"] for one in layers),
        "notes": list(notes),
    }


def success(**changes: Any) -> dict[str, Any]:
    return {
        "type": "success",
        "model_id": ID,
        "reference": "docker.io/ai/m:latest",
        "size_bytes": 100 * MIB,
        "transferred_bytes": 100 * MIB,
        "was_cached": False,
        **changes,
    }


def failure(code: str, text: str) -> dict[str, Any]:
    return {"type": "error", "error": {"message": text, "type": "server_error", "param": None, "code": code}}


def sent_line(document: dict[str, Any]) -> bytes:
    return chunk(json.dumps(document).encode() + b"\n")


def told(*lines: dict[str, Any]) -> Iterator[bytes]:
    """A whole answer."""
    yield HEAD
    for line in lines:
        yield sent_line(line)
    yield STREAM_END
