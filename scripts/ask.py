"""Ask the default model; the store gets it first where it does not have it.

    .venv/bin/python scripts/ask.py [OPTION…] [QUESTION]

Options are those of `runner run`. Runs in the environment that `scripts/environment.py` made.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from default_model import LICENSE_FILE, MODEL_FILE, fetch

from runner.__main__ import main as runner
from runner.cli.connect import connect_or_start
from runner.cli.failures import report
from runner.client import ApiError, model_path

MODEL = "ai/smollm2:135M-Q4_1"
FILES = Path(__file__).resolve().parent.parent / ".cache" / "models"


def main() -> None:
    try:
        if not {"-h", "--help"} & set(sys.argv) and not _is_in_store():
            _package()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(report(error))
    sys.argv = ["runner", "run", MODEL, *sys.argv[1:]]
    runner()


def _is_in_store() -> bool:
    """Starts a daemon in the background when none runs."""
    try:
        connect_or_start(None).get(f"/v1/models/{model_path(MODEL)}")
    except ApiError as error:
        if error.error_code != "model_not_found":
            raise
        return False
    return True


def _package() -> None:
    fetch(FILES)
    command = [sys.executable, "-m", "runner", "ctl", "package", str(FILES / MODEL_FILE), MODEL]
    done = subprocess.run(
        [*command, "--license", str(FILES / LICENSE_FILE)], stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
