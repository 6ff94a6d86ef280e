"""A real daemon, the real engine, the default model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, running_daemon

MODEL = "ai/smollm2:135M-Q4_1"


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory, default_model_file: Path) -> Iterator[RunningDaemon]:
    license_file = default_model_file.with_name("LICENSE")
    with running_daemon(tmp_path_factory.mktemp("daemon"), RUNNER_ENGINE="llama") as running:
        running.package(MODEL, default_model_file, "--license", str(license_file))
        running.runner("ctl", "start", MODEL, "--keep-alive", "-1")
        yield running
