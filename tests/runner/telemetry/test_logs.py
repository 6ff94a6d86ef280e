"""Log lines: one event, one bounded line, whatever the text holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from runner.telemetry.logs import LINE_BYTES_MAX, configure_logging, one_line


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "logs" / "daemon.log"
    before, level = logging.getLogger().handlers[:], logging.getLogger().level
    configure_logging("info", path)
    yield path
    for handler in logging.getLogger().handlers:
        handler.close()
    logging.getLogger().handlers[:] = before
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()


def test_K05_newlines_and_escape_sequences_stay_within_one_line(log_file: Path) -> None:
    structlog.get_logger("runner.test").info("a\nb\x1b[31m", name="x\r\ny")
    logging.getLogger("library").warning("c\nd")
    lines = log_file.read_text().splitlines()
    assert len(lines) == 2
    assert "a\\nb\\x1b[31m" in lines[0]
    assert "c\\nd" in lines[1]


@pytest.mark.parametrize("size", [LINE_BYTES_MAX - 1, LINE_BYTES_MAX, LINE_BYTES_MAX + 1])
def test_K05_a_line_is_cut_at_the_limit(size: int) -> None:
    line = one_line("x" * size)
    assert len(line.encode()) <= LINE_BYTES_MAX
    assert ("cut" in line) == (size > LINE_BYTES_MAX)


@given(st.text())
def test_K05_any_text_becomes_one_printable_line(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in line)


def test_an_exception_is_part_of_its_line(log_file: Path) -> None:
    try:
        raise ValueError("broken\nthing")
    except ValueError:
        structlog.get_logger("runner.test").exception("it failed")
    (line,) = log_file.read_text().splitlines()
    assert "it failed" in line
    assert "ValueError: broken" in line


def test_K03_the_file_is_for_its_owner_only(log_file: Path) -> None:
    assert log_file.stat().st_mode & 0o777 == 0o600
    assert log_file.parent.stat().st_mode & 0o777 == 0o700


def test_records_below_the_level_are_dropped(log_file: Path) -> None:
    structlog.get_logger("runner.test").debug("quiet")
    assert log_file.read_text() == ""
