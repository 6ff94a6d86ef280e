"""Commands in this process, against a scripted control API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control import Cli, command_line


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cli]:
    with command_line(monkeypatch, str(tmp_path)) as commands:
        yield commands
