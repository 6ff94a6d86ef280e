"""What commands print: tables, JSON, progress.

Data goes to stdout, messages to stderr. Outside text (names, model output, registry errors) is made harmless
here before a terminal sees it (K06), and into pipes too, since many of them end in a terminal. rich is
imported only for a progress bar on a terminal.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click

# Embeddings, overrides and isolates reorder what a reader sees beyond themselves.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Marks are part of Arabic and Hebrew prose, but of no name.
_UNEXPECTED_IN_A_NAME = _REORDERING | frozenset("\u061c\u200e\u200f\u2028\u2029")


def harmless(text: str) -> str:
    """Prose without escape sequences: control, C1 and reordering characters become visible `\\xNN` forms.

    Newlines and tabs stay; carriage returns, which overwrite lines, go.
    """
    if text.isprintable():
        return text
    return "".join(_harmless_character(character) for character in text if character != "\r")


def harmless_line(text: str) -> str:
    """As `harmless`, for one line or cell: newlines, tabs and direction marks become visible as well."""
    if text.isprintable():
        return text
    return "".join(
        _visible(character)
        if character in _UNEXPECTED_IN_A_NAME or unicodedata.category(character) in ("Cc", "Cs")
        else character
        for character in text
    )


def _harmless_character(character: str) -> str:
    if character in "\n\t":
        return character
    if character in _REORDERING or unicodedata.category(character) in ("Cc", "Cs"):
        return _visible(character)
    return character


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def print_json(value: Any) -> None:
    """All beyond ASCII as escapes: harmless to terminals, and valid in every encoding."""
    click.echo(json.dumps(value, indent=2))


def print_line(value: Any) -> None:
    """The same on one line, at once: for programs that read events as they come."""
    click.echo(json.dumps(value))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Capital header, no borders, left-aligned, two spaces between columns; cells are outside text."""
    lines = [tuple(header), *(tuple(harmless_line(cell) for cell in row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def message(text: str) -> None:
    """To people, on stderr."""
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
            message(f"{harmless_line(self._label)}: {tenths * 10}%")


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
            task = bar.add_task(harmless_line(label), total=total_bytes)
            yield _BarProgress(bar, task)


class _BarProgress:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task

    def advance(self, size_bytes: int) -> None:
        self._bar.advance(self._task, size_bytes)
