"""Set up the virtual environment `.venv`, once, and say what happens meanwhile.

    python3 scripts/environment.py [--dev]

Standard library only, and little of it before something is to be done: it runs before anything is installed
and at every call of `scripts/run`. The stamp in the environment tells what it was made from; a marker beside
it tells that somebody began and did not finish. Only one process at a time works on it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import subprocess
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".stamp"
CACHE = ROOT / ".cache"
MARKER = CACHE / "setup.unfinished"
LOG = CACHE / "install.log"
_BUILD_CONSTRAINT = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")
"""Reach what pip installs to build with: the first up to pip 25.2, the second from 25.3 on."""
_TAIL_LINES = 200
_SHOWN_LINES = 15


def main(arguments: list[str]) -> None:
    is_dev = arguments == ["--dev"]
    if arguments and not is_dev:
        sys.exit(__doc__)
    if is_finished(is_dev):
        return
    with _alone() as lock:
        if not is_finished(is_dev):  # whoever we waited for may have done it
            _set_up(is_dev, lock)


def is_finished(is_dev: bool) -> bool:
    """Whether the environment is there, made from these files, in this place, by this Python."""
    present = _read(STAMP)
    return present == _stamp(is_dev=True) or (not is_dev and present == _stamp(is_dev=False))


def _set_up(is_dev: bool, lock: int) -> None:
    _require_python()
    _require_tools()
    if not _is_usable():
        _create()
    MARKER.touch()
    _install(is_dev, lock)
    _write(STAMP, _stamp(is_dev))
    MARKER.unlink()
    say("the environment is ready")


def _stamp(is_dev: bool) -> str:
    """Everything that decides what is in the environment. Its paths are absolute, so the place counts."""
    made_by = f"{ROOT}\n{sys.version_info[0]}.{sys.version_info[1]}\n"
    files = [_read(ROOT / name) for name in ("pyproject.toml", "constraints.txt")]
    return f"{'dev' if is_dev else 'run'}\n{made_by}{''.join(files)}"


def _read(path: Path) -> str:
    """The text of a file, empty when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


@contextmanager
def _alone() -> Iterator[int]:
    """Hold the lock; yields its descriptor, which pip inherits, so that a pip that outlives us keeps it."""
    import fcntl
    import signal

    signal.signal(signal.SIGTERM, _end)
    CACHE.mkdir(exist_ok=True)
    lock = os.open(CACHE / "setup.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another setup is at work here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _require_python() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        fail(f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; PYTHON=… names another one")


def _require_tools() -> None:
    """A C++ compiler for the engine, and ensurepip; installed where this user may, named where not."""
    import importlib.util
    import shutil

    missing = {}
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        missing["a C++ compiler"] = "g++"
    if importlib.util.find_spec("ensurepip") is None:
        missing["ensurepip of this Python"] = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    if not missing:
        return
    packages = list(missing.values())
    if os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing {' and '.join(missing)}: apt-get install {' '.join(packages)}")
        _apt_get("update")
        if _apt_get("install", "-y", *packages) == 0:
            return
    fail(f"missing: {' and '.join(missing)}; on Debian: sudo apt-get install {' '.join(packages)}")


def _apt_get(*arguments: str) -> int:
    import subprocess

    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-qq", *arguments]
    return subprocess.run(command, check=False, stdout=sys.stderr, env=environment).returncode


def _is_usable() -> bool:
    """Whether what is in `.venv` can be built upon: whole, made here, by this version of Python."""
    import subprocess

    if MARKER.exists() or not PYTHON.exists():
        return False
    present = _read(STAMP)
    if present and present.split("\n", 3)[1:3] != _stamp(is_dev=False).split("\n", 3)[1:3]:
        return False
    code = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"
    return subprocess.run([PYTHON, "-I", "-c", code], capture_output=True, check=False).returncode == 0


def _create() -> None:
    """A new environment in the place of whatever is there."""
    import shutil
    import subprocess
    import venv

    say("creating a virtual environment in .venv")
    MARKER.touch()
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        venv.EnvBuilder(with_pip=True, symlinks=True).create(VENV)
    except subprocess.CalledProcessError as error:
        sys.stderr.write((error.output or b"").decode(errors="replace"))
        fail("the virtual environment could not be made; does this Python have ensurepip?")


def _install(is_dev: bool, lock: int) -> None:
    import subprocess
    import time

    say(
        "installing the project; unless pip has it already, the engine (llama.cpp) is compiled, "
        "which takes 5 to 10 minutes on 2 cores"
    )
    # Names relative to the directory: pip splits some paths at spaces and brackets.
    command = [
        *(
            str(PYTHON),
            "-I",
            "-m",
            "pip",
            "install",
            "--verbose",
            "--no-input",
            "--disable-pip-version-check",
        ),
        *("--constraint", "constraints.txt", "--editable", ".[dev]" if is_dev else "."),
    ]
    started_s = time.monotonic()
    with (
        LOG.open("wb") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **dict.fromkeys(_BUILD_CONSTRAINT, "constraints.txt")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            start_new_session=True,
        ) as pip,
    ):
        tail = _followed(pip, log)
    if pip.returncode != 0:
        MARKER.unlink()  # pip ended in order, so the next call may go on from here
        reason = reason_of("\n".join(tail))
        if pip.returncode < 0:
            reason = f"pip was ended by signal {-pip.returncode}"
        if reason is None:
            sys.stderr.write("\n".join(tail[-_SHOWN_LINES:]) + "\n")
        fail(f"{reason or 'installing failed'}; the full output is in .cache/install.log")
    say(f"installed in {time.monotonic() - started_s:.0f} s")


def _followed(pip: subprocess.Popen[bytes], log: IO[bytes]) -> list[str]:
    """Show what pip is at until it ends; returns its last lines. When we are ended, so is what it runs."""
    import signal

    try:
        assert pip.stdout is not None
        return follow(pip.stdout, log)
    except BaseException:
        os.killpg(pip.pid, signal.SIGTERM)
        raise


def follow(output: IO[bytes], log: IO[bytes]) -> list[str]:
    """Copy `output` to `log` and show packages and the compiler's count; returns the last lines."""
    import re
    from collections import deque

    compiled = re.compile(rb"\[(\d+)/(\d+)\]")
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    shown = Shown()
    for line in output:
        log.write(line)
        text = line.decode(errors="replace").rstrip()
        tail.append(text)
        count = compiled.search(line)
        if count is not None:
            shown.count(int(count[1]), int(count[2]))
        elif text.startswith(("Collecting ", "Installing collected")):
            shown.note(text.split(" (")[0][:70])
    shown.end()
    return list(tail)


class Shown:
    """One line that is rewritten on a terminal; elsewhere a line at each tenth."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._tenths = 0

    def note(self, text: str) -> None:
        if self._is_terminal:
            sys.stderr.write(f"\r\033[K  {text}")
            sys.stderr.flush()

    def count(self, done: int, total: int) -> None:
        text = f"compiling the engine: {done}/{total}"
        if self._is_terminal:
            self.note(text)
        elif 10 * done // max(1, total) > self._tenths:
            self._tenths = 10 * done // max(1, total)
            say(text)

    def end(self) -> None:
        if self._is_terminal:
            sys.stderr.write("\r\033[K")


_UNREACHABLE = (
    "No matching distribution",
    "The user requested (constraint)",
    "NewConnectionError",
    "Name or service not known",
    "Temporary failure in name resolution",
    "ProxyError",
    "CERTIFICATE_VERIFY_FAILED",
    "Read timed out",
)


def reason_of(output: str) -> str | None:
    """Why pip failed, in the words of somebody who wants to repair it; None when this is not known."""
    import re

    if "No space left on device" in output:
        return "the disk is full (compiling needs about 2 GB below /tmp or TMPDIR)"
    if any(sign in output for sign in _UNREACHABLE):
        missing = re.search(r"(?:No matching distribution found for|\(constraint\)) (\S+)", output)
        return (
            f"the Python package {missing[1] if missing else 'that is due'} could not be fetched. Needed is "
            "a package registry that can be reached (or a mirror: PIP_INDEX_URL), or wheels in PIP_FIND_LINKS"
        )
    if "Killed signal" in output or "Killed (program" in output:
        return "the compiler was killed, most likely for memory; try again with CMAKE_BUILD_PARALLEL_LEVEL=1"
    if "CMAKE_CXX_COMPILER" in output or "CMAKE_C_COMPILER" in output:
        return "the C++ compiler does not work; on Debian: sudo apt-get install g++"
    return None


def say(text: str) -> None:
    print(f"[setup] {text}", file=sys.stderr, flush=True)


def fail(text: str) -> NoReturn:
    say(f"error: {text}")
    sys.exit(1)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        say("stopped; the next call starts again")
        sys.exit(130)
