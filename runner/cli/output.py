"""What commands print: tables, JSON, progress, errors.

Data goes to stdout, messages to stderr. Outside text (names, model output, registry errors) is made harmless
here before a terminal sees it (K06). rich is imported only for a progress bar on a terminal.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click

# Direction overrides and isolates reorder what a reader sees.
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def harmless(text: str, *, keep_newlines: bool = True) -> str:
    """Text without escape sequences: control, C1 and direction characters become visible `\\xNN` forms."""
    if text.isprintable() and not _DIRECTION.intersection(text):
        return text
    return "".join(_harmless_character(character, keep_newlines) for character in text)


def _harmless_character(character: str, keep_newlines: bool) -> str:
    if character in "\n\t" and keep_newlines:
        return character
    if character in _DIRECTION or unicodedata.category(character) in ("Cc", "Cs"):
        return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
    return character


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Capital header, no borders, left-aligned, two spaces between columns."""
    lines = [tuple(header), *(tuple(harmless(cell, keep_newlines=False) for cell in row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def message(text: str) -> None:
    click.echo(harmless(text), err=True)


class Progress(Protocol):
    def advance(self, size_bytes: int) -> None: ...


class _Silent:
    def advance(self, size_bytes: int) -> None:
        """Nobody watches."""


class _Lines:
    """Progress where stderr is no terminal: a line at each tenth."""

    def __init__(self, label: str, total_bytes: int) -> None:
        self._label = label
        self._total = total_bytes
        self._done = 0
        self._tenths = 0

    def advance(self, size_bytes: int) -> None:
        self._done += size_bytes
        tenths = 10 * self._done // max(1, self._total)
        if tenths > self._tenths:
            self._tenths = tenths
            message(f"{self._label}: {tenths * 10}%")


@contextmanager
def progress(label: str, total_bytes: int, *, is_silent: bool = False) -> Iterator[Progress]:
    """Bytes on their way: a bar with rate and remaining time on a terminal, lines otherwise."""
    if is_silent:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(label, total_bytes)
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(harmless(label, keep_newlines=False), total=total_bytes)
            yield _BarProgress(bar, task)


class _BarProgress:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task

    def advance(self, size_bytes: int) -> None:
        self._bar.advance(self._task, size_bytes)
