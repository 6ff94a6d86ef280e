"""Real daemons under the scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.tiny_gguf import TinyModel, write_tiny_gguf
from tests.support.daemon import RunningDaemon, running_daemon


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file that every check accepts and that the scripted engine serves."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", TinyModel(context_length=8192))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[RunningDaemon]:
    """One daemon for a module, with the models `ai/one:latest` and `ai/two:latest`."""
    with running_daemon(tmp_path_factory.mktemp("daemon")) as running:
        running.package("one", tiny_model)
        running.package("two", tiny_model, "--context-size", "512")
        yield running


@pytest.fixture
def own_daemon(tmp_path: Path, tiny_model: Path) -> Iterator[RunningDaemon]:
    """A daemon that a test may kill."""
    with running_daemon(tmp_path) as running:
        running.package("one", tiny_model)
        running.package("two", tiny_model, "--context-size", "512")
        yield running
