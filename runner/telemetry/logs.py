"""Where log lines go and what they look like: one event, one bounded line, no control bytes.

Modules log through `structlog.get_logger(__name__)` or the standard library; both end here. Prompts and
answers are never passed to a logger (K04). Imports nothing of ours.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
import unicodedata
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import structlog

LINE_BYTES_MAX = 8 * 1024
FILE_BYTES_MAX = 10 * 1024 * 1024
FILES_KEPT = 3

_CUT_MARK = " …[cut]"


def one_line(text: str, limit_bytes: int = LINE_BYTES_MAX) -> str:
    """Control characters and line ends made visible, and at most `limit_bytes` of UTF-8."""
    if not text.isprintable():
        text = "".join(_visible(character) for character in text)
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= limit_bytes:
        return encoded.decode("utf-8")
    kept = encoded[: limit_bytes - len(_CUT_MARK.encode())].decode("utf-8", "ignore")
    return kept + _CUT_MARK


def _visible(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) in ("Zs", "Co", "Cn"):
        return character
    return character.encode("unicode_escape").decode("ascii")


def configure_logging(level: str, file: Path | None = None) -> None:
    """Send all records of `level` and above to `file` (0600, rotated), or to stderr."""
    handler = _file_handler(file) if file is not None else logging.StreamHandler(sys.stderr)
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _render],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _file_handler(file: Path) -> logging.Handler:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.touch(mode=0o600, exist_ok=True)
    return logging.handlers.RotatingFileHandler(
        file, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT - 1, encoding="utf-8", errors="backslashreplace"
    )


def _render(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    """`time level logger: event key=value …`, cleaned."""
    exception = event.pop("exception", None)
    head = f"{event.pop('timestamp', '')} {event.pop('level', method):<7} {_short(event.pop('logger', ''))}: "
    text = f"{head}{event.pop('event', '')}{_pairs(event)}"
    if exception:
        text += f" | {exception}"
    return one_line(text)


def _short(logger: str) -> str:
    return logger.removeprefix("runner.")


def _pairs(event: Mapping[str, Any]) -> str:
    return "".join(f" {key}={_value(value)}" for key, value in event.items() if not key.startswith("_"))


def _value(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text or not text else text
