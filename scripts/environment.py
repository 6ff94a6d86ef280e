"""Set up the virtual environment `.venv`, once, and say what happens meanwhile.

    python3 scripts/environment.py [--dev]

Standard library only: it runs before anything is installed. The stamp in the environment names the files
that decide its content, so an unchanged environment costs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".stamp"
LOG = VENV / "install.log"
_COMPILED = re.compile(rb"\[(\d+)/(\d+)\]")
_DEBIAN_PARTS = {"c++": "g++", "git": "git"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also what the tests and checks need")
    options = parser.parse_args()
    wanted = _stamp(options.dev)
    if _present_stamp() in (wanted, _stamp(is_dev=True)):
        return
    _require_python()
    _require_tools()
    _create()
    _install(options.dev)
    STAMP.write_text(wanted)
    _say("the environment is ready")


def _stamp(is_dev: bool) -> str:
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return f"{'dev' if is_dev else 'run'} {digest.hexdigest()}"


def _present_stamp() -> str:
    try:
        return STAMP.read_text()
    except FileNotFoundError:
        return ""


def _require_python() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        _fail(f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}")


def _require_tools() -> None:
    """A C++ compiler for the engine; installed where this user may, named where not."""
    missing = [name for name in _DEBIAN_PARTS if shutil.which(name) is None]
    if not missing:
        return
    packages = [_DEBIAN_PARTS[name] for name in missing]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _say(f"installing {', '.join(packages)}")
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        if subprocess.run(["apt-get", "install", "-y", "-qq", *packages], check=False).returncode == 0:
            return
    _fail(f"missing: {', '.join(missing)}; on Debian: sudo apt-get install {' '.join(packages)}")


def _create() -> None:
    if (VENV / "bin" / "python").exists():
        return
    _say(f"creating a virtual environment in {VENV.name}")
    try:
        venv.EnvBuilder(with_pip=True, clear=VENV.exists()).create(VENV)
    except (subprocess.CalledProcessError, ImportError):
        _fail("this Python has no ensurepip; on Debian: sudo apt-get install python3-venv")


def _install(is_dev: bool) -> None:
    _say("installing; the engine (llama.cpp) is compiled once, which takes 5 to 10 minutes on 2 cores")
    target = f"{ROOT}[dev]" if is_dev else str(ROOT)
    command = [
        str(VENV / "bin" / "python"),
        *("-m", "pip", "install", "--verbose", "--disable-pip-version-check"),
        *("--constraint", str(ROOT / "constraints.txt"), "--editable", target),
    ]
    started_s = time.monotonic()
    with (
        LOG.open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as pip,
    ):
        if pip.stdout is None:
            raise RuntimeError("pip was started without a pipe")
        tail = _follow(pip.stdout, log)
    if pip.returncode != 0:
        sys.stderr.write("\n".join(tail[-15:]) + "\n")
        _fail(_reason("\n".join(tail)))
    _say(f"installed in {time.monotonic() - started_s:.0f} s")


def _follow(output: object, log: object) -> list[str]:
    """Show what pip is at: packages and the compiler's count. Returns the last lines."""
    tail: list[str] = []
    shown = Shown()
    for line in output:  # type: ignore[attr-defined]  # the pipe of a Popen
        log.write(line)  # type: ignore[attr-defined]  # a file opened for writing
        text = line.decode(errors="replace").rstrip()
        tail = [*tail[-200:], text]
        count = _COMPILED.search(line)
        if count:
            shown.count(int(count[1]), int(count[2]))
        elif text.startswith(("Collecting ", "Installing collected")):
            shown.note(text.split(" (")[0][:70])
    shown.end()
    return tail


class Shown:
    """One line that is rewritten on a terminal; elsewhere a line at each tenth."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._tenths = -1

    def note(self, text: str) -> None:
        if self._is_terminal:
            sys.stderr.write(f"\r\033[K  {text}")
            sys.stderr.flush()

    def count(self, done: int, total: int) -> None:
        if self._is_terminal:
            self.note(f"compiling the engine: {done}/{total}")
        elif 10 * done // total > self._tenths:
            self._tenths = 10 * done // total
            _say(f"compiling the engine: {done}/{total}")

    def end(self) -> None:
        if self._is_terminal:
            sys.stderr.write("\r\033[K")


def _reason(tail: str) -> str:
    if any(
        sign in tail
        for sign in ("NewConnectionError", "No matching distribution", "Name or service not known")
    ):
        return (
            "a Python package could not be fetched. Needed are a reachable package registry (or mirror: set "
            f"PIP_INDEX_URL) or wheels in PIP_FIND_LINKS; the full output is in {LOG.relative_to(ROOT)}"
        )
    return f"installing failed; the full output is in {LOG.relative_to(ROOT)}"


def _say(text: str) -> None:
    print(f"[setup] {text}", file=sys.stderr, flush=True)


def _fail(text: str) -> None:
    _say(f"error: {text}")
    sys.exit(1)


if __name__ == "__main__":
    main()
