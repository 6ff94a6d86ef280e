"""Parse and print bytes, durations and rates.

Owns every conversion between numbers and the text people write or read. Imports nothing of ours.
"""

from __future__ import annotations

import re

_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "kib": 1024,
    "m": 1000**2,
    "mb": 1000**2,
    "mib": 1024**2,
    "g": 1000**3,
    "gb": 1000**3,
    "gib": 1024**3,
    "t": 1000**4,
    "tb": 1000**4,
    "tib": 1024**4,
}
_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_bytes(text: str) -> int:
    """Bytes from `512MiB`, `4GB` or a plain number; ValueError says what is accepted."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].lower() not in _BYTE_UNITS:
        raise ValueError(f"{text!r} is not a size; write 512MiB, 4GB or a number of bytes")
    return int(float(match[1]) * _BYTE_UNITS[match[2].lower()])


def format_bytes(size_bytes: int) -> str:
    """`98.1 MiB`: binary units, at most one decimal."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def parse_duration(text: str) -> float:
    """Seconds from `5m`, `1h30m`, `90s`, `250ms` or a plain number; ValueError says what is accepted.

    A leading minus keeps its sign, so that `-1` can mean "never"; the caller decides what that is.
    """
    text = text.strip()
    sign, body = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    if _PLAIN_NUMBER.fullmatch(body):
        return sign * float(body)
    parts = _DURATION_PART.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        raise ValueError(f"{text!r} is not a duration; write 30s, 5m, 1h30m or a number of seconds")
    return sign * sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """`1h5m`, `4m30s`, `12s`, `0.35s`: the two largest units that matter."""
    if seconds < 10:
        return f"{seconds:.2f}s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{secs}s" if secs else f"{minutes}m"
    return f"{secs}s"


def format_age(seconds: float) -> str:
    """`3 days ago`, `just now`: one unit, for tables."""
    for size_s, name in (
        (86400 * 365, "year"),
        (86400 * 30, "month"),
        (86400 * 7, "week"),
        (86400, "day"),
        (3600, "hour"),
        (60, "minute"),
    ):
        count = int(seconds // size_s)
        if count >= 1:
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"
