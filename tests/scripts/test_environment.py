"""Setting up: what is looked at and said, what happens side by side and after a kill; pip is scripted."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.control import Terminal

ROOT = Path(__file__).parents[2]
LIMIT_S = 60


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def environment() -> ModuleType:
    return load(ROOT / "scripts" / "environment.py")


class Checkout:
    """A copy of the scripts in a directory with an odd name, and an environment whose pip does as it is told.

    The scripted pip writes its arguments into `pip.log`, prints `pip.out`, and exits with `pip.status`. When
    `pip.fifo` exists it waits there for a writer.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, directory)
        (directory / "scripts").mkdir()
        for name in ("environment.py", "environment.sh"):
            shutil.copy(ROOT / "scripts" / name, directory / "scripts")
        self.venv = directory / ".venv"
        self.say(status=0)

    def say(self, output: str = "", *, status: int) -> None:
        (self.directory / "pip.out").write_text(output)
        (self.directory / "pip.status").write_text(str(status))

    @property
    def stamp(self) -> Path:
        return self.venv / ".stamp"

    @property
    def marker(self) -> Path:
        return self.directory / ".cache" / "setup.unfinished"

    @property
    def calls(self) -> list[str]:
        log = self.directory / "pip.log"
        return log.read_text().splitlines() if log.exists() else []

    def make_venv(self) -> None:
        """As `venv` does, with the scripted pip in the place of the real one."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.venv)], check=True)
        self.script_pip()

    def script_pip(self) -> None:
        pip = next(self.venv.glob("lib/python3.*/site-packages")) / "pip"
        shutil.rmtree(pip, ignore_errors=True)
        pip.mkdir()
        (pip / "__init__.py").touch()
        (pip / "__main__.py").write_text(
            "import os, sys\n"
            "with open('pip.log', 'a') as log: print(*sys.argv[1:], file=log)\n"
            "print(open('pip.out').read(), flush=True)\n"
            "if os.path.exists('pip.fifo'): open('pip.fifo').read()\n"
            "sys.exit(int(open('pip.status').read()))\n"
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-I", "-S", str(self.directory / "scripts" / "environment.py"), *arguments]

    def set_up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, timeout=LIMIT_S, cwd="/"
        )

    @contextmanager
    def setting_up(self) -> Iterator[subprocess.Popen[bytes]]:
        """A call whose pip has begun and waits; what it says is in `first.err`."""
        fifo = self.directory / "pip.fifo"
        os.mkfifo(fifo)
        with (
            (self.directory / "first.err").open("wb") as stderr,
            subprocess.Popen(self.command(), stderr=stderr, cwd="/") as process,
            fifo.open("w"),  # opens when pip reads
        ):
            fifo.unlink()
            yield process


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    directory = tmp_path / "an [odd] name, with spaces"
    directory.mkdir()
    made = Checkout(directory)
    made.make_venv()
    return made


def test_a_call_installs_with_the_constraints_and_says_so(checkout: Checkout) -> None:
    done = checkout.set_up()
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "[setup] the environment is ready"
    assert checkout.calls == [
        "install --verbose --no-input --disable-pip-version-check --constraint constraints.txt --editable ."
    ]
    assert not checkout.marker.exists()


def test_the_next_call_does_and_says_nothing(checkout: Checkout) -> None:
    checkout.set_up()
    done = checkout.set_up()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(checkout.calls) == 1


def test_what_tests_need_is_installed_once_and_serves_runs_as_well(checkout: Checkout) -> None:
    checkout.set_up()
    checkout.set_up("--dev")
    assert checkout.calls[1].endswith("--editable .[dev]")
    checkout.set_up("--dev")
    checkout.set_up()
    assert len(checkout.calls) == 2


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_means_installing_again(checkout: Checkout, name: str) -> None:
    checkout.set_up()
    with (checkout.directory / name).open("a") as file:
        file.write("# changed\n")
    checkout.set_up()
    assert len(checkout.calls) == 2


def test_other_arguments_are_refused(checkout: Checkout) -> None:
    assert checkout.set_up("--develop").returncode == 1
    assert checkout.calls == []


def test_a_failure_of_pip_is_told_and_the_next_call_goes_on(checkout: Checkout) -> None:
    checkout.say("some output\nERROR: it broke", status=1)
    done = checkout.set_up()
    assert done.returncode == 1
    assert "ERROR: it broke" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "[setup] error: installing failed; the full output is in .cache/install.log"
    )
    assert "some output" in (checkout.directory / ".cache" / "install.log").read_text()
    assert not checkout.stamp.exists()
    checkout.say(status=0)
    assert checkout.set_up().returncode == 0
    assert checkout.stamp.exists()


def test_a_call_that_meets_another_waits_and_finds_all_done(checkout: Checkout) -> None:
    with checkout.setting_up() as first:
        second = subprocess.Popen(checkout.command(), stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert second.stderr.readline() == "[setup] another setup is at work here; waiting for it\n"
    with second:
        assert second.wait(LIMIT_S) == 0
        assert second.stderr.read() == ""
    assert first.returncode == 0
    assert len(checkout.calls) == 1


def test_after_a_kill_the_next_call_waits_for_the_orphan_and_starts_over(checkout: Checkout) -> None:
    with checkout.setting_up() as first:
        first.kill()
        first.wait(LIMIT_S)
        assert checkout.marker.exists()
        second = subprocess.Popen(checkout.command(), stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert "waiting" in second.stderr.readline()  # pip is still at work in there
    with second:
        assert second.stderr.readline() == "[setup] creating a virtual environment in .venv\n"
        second.terminate()  # what follows would be a real pip
        second.wait(LIMIT_S)
    assert checkout.marker.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_call_that_is_ended_ends_pip_as_well(
    checkout: Checkout, number: signal.Signals, status: int
) -> None:
    with checkout.setting_up() as process:
        process.send_signal(number)
        assert process.wait(LIMIT_S) == status
    assert "Traceback" not in (checkout.directory / "first.err").read_text()
    assert checkout.marker.exists()
    assert not checkout.stamp.exists()


def test_a_checkout_that_was_moved_is_set_up_anew(checkout: Checkout, environment: ModuleType) -> None:
    """The environment's scripts name the old place."""
    checkout.set_up()
    moved = load(checkout.directory / "scripts" / "environment.py")
    assert moved.is_finished(False)
    assert moved._is_usable()
    text = checkout.stamp.read_text().replace("odd", "other")
    checkout.stamp.write_text(text)
    assert not moved.is_finished(False)
    assert not moved._is_usable()


def test_an_environment_of_another_python_is_not_used(checkout: Checkout) -> None:
    checkout.set_up()
    module = load(checkout.directory / "scripts" / "environment.py")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}\n"
    checkout.stamp.write_text(checkout.stamp.read_text().replace(version, "3.9\n", 1))
    assert not module._is_usable()


def test_an_environment_made_by_hand_is_used(checkout: Checkout) -> None:
    assert load(checkout.directory / "scripts" / "environment.py")._is_usable()


@pytest.mark.parametrize("damage", ["marker", "no pip", "no python"])
def test_a_damaged_environment_is_not_used(checkout: Checkout, damage: str) -> None:
    module = load(checkout.directory / "scripts" / "environment.py")
    match damage:
        case "marker":
            checkout.marker.parent.mkdir()
            checkout.marker.touch()
        case "no pip":
            shutil.rmtree(next(checkout.venv.glob("lib/python3.*/site-packages/pip")))
        case "no python":
            (checkout.venv / "bin" / "python").unlink()
            (checkout.venv / "bin" / "python").symlink_to("/nowhere/python3")
    assert not module._is_usable()


# what is missing


@pytest.fixture
def fresh(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the copy, for a user who may install nothing, and whose compiler is there."""
    module = load(checkout.directory / "scripts" / "environment.py")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return module


def fails(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        module._require_python()
        module._require_tools()
    assert ended.value.code == 1
    return capsys.readouterr().err.strip()


def test_nothing_is_missing_where_everything_is_there(fresh: ModuleType) -> None:
    fresh._require_python()
    fresh._require_tools()


@pytest.mark.parametrize(
    ("version", "is_accepted"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)]
)
def test_the_range_of_pythons(
    fresh: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: tuple[int, int],
    is_accepted: bool,
) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    if is_accepted:
        fresh._require_python()
    else:
        assert "Python 3.11 to 3.13 is needed" in fails(fresh, capsys)


def test_a_missing_compiler_is_named_with_its_package(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert fails(fresh, capsys) == (
        "[setup] error: missing: a C++ compiler; on Debian: sudo apt-get install g++"
    )


def test_a_python_without_ensurepip_is_told(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    assert fails(fresh, capsys) == (
        f"[setup] error: missing: ensurepip of this Python; on Debian: sudo apt-get install {package}"
    )


def test_the_superuser_gets_what_is_missing(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None)
    commands: list[tuple[str, ...]] = []

    def apt_get(*arguments: str) -> int:
        commands.append(arguments)
        return 0

    monkeypatch.setattr(fresh, "_apt_get", apt_get)
    fresh._require_tools()
    assert commands == [("update",), ("install", "-y", "g++")]
    assert "apt-get install g++" in capsys.readouterr().err


# what pip says


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("ERROR: No matching distribution found for hatchling>=1.27", "hatchling>=1.27 could not be fetched"),
        ("The user requested (constraint) hatchling==1.33.0", "hatchling==1.33.0 could not be fetched"),
        ("NewConnectionError('<pip._vendor...", "could not be fetched"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("CMake Error: CMAKE_CXX_COMPILER not set", "C++ compiler does not work"),
        ("something else", None),
    ],
)
def test_why_pip_failed_is_told_in_plain_words(
    environment: ModuleType, output: str, reason: str | None
) -> None:
    told = environment.reason_of(output)
    assert (reason in told) if reason is not None and told is not None else told is reason


COMPILING = b"".join(b"  [%d/193] /usr/bin/g++ -O3 -c file.cpp\n" % n for n in range(1, 194))


def test_progress_of_the_compiler_is_a_line_at_each_tenth(
    environment: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    log = io.BytesIO()
    tail = environment.follow(io.BytesIO(b"Collecting attrs\n" + COMPILING + b"\xff\n"), log)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"[setup] compiling the engine: {n}/193" for n in (20, 39, 58, 78, 97, 116, 136, 155, 174, 193)
    ]
    assert log.getvalue() == b"Collecting attrs\n" + COMPILING + b"\xff\n"
    assert len(tail) == 195


def test_progress_on_a_terminal_is_one_line(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    environment.follow(io.BytesIO(b"Collecting attrs>=26 (from runner)\n" + COMPILING), io.BytesIO())
    assert "\n" not in terminal.getvalue()
    assert "\r\033[K  Collecting attrs>=26\r\033[K  compiling the engine: 1/193\r" in terminal.getvalue()
    assert terminal.getvalue().endswith("193/193\r\033[K")


def test_only_the_last_lines_of_a_long_output_are_kept(environment: ModuleType) -> None:
    tail = environment.follow(io.BytesIO(b"line\n" * 10_000 + b"last\n"), io.BytesIO())
    assert tail[-1] == "last"
    assert len(tail) == 200


# the shell's part


def test_the_shell_finds_a_python_that_fits_or_says_which(checkout: Checkout, tmp_path: Path) -> None:
    script = f'root={str(checkout.directory)!r}; source "$root/scripts/environment.sh"; find_python'

    def found(path: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-c", script],
            env={"PATH": path, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    assert found("/nowhere").returncode == 1
    assert "Python 3.11 to 3.13 is needed" in found("/nowhere").stderr
    (tmp_path / "python3.13").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")  # too old
    for name in ("python3", "python3.13"):
        (tmp_path / name).chmod(0o700)
    assert found(str(tmp_path)).stdout == f"{tmp_path}/python3.13\n"
    assert found("/nowhere", PYTHON=sys.executable).stdout == f"{sys.executable}\n"
