"""Where the models are that tests run."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = Path(os.environ.get("RUNNER_TEST_CACHE", Path(__file__).parents[2] / ".cache"))
"""`scripts/test` fills it."""


def models_called(pattern: str) -> list[str]:
    """Names of files there; none when there are none."""
    return sorted(path.name for path in (CACHE / "models").glob(pattern))
