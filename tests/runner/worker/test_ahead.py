"""Imports before the hello: what they bring, at which priority, and what they leave alone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.worker.ahead import low_session_priority

PATIENCE_S = 60.0
REPORT = """
import os, sys, threading
import runner.worker.ahead as ahead
seen = {}
import_module = ahead.importlib.import_module
def look_and_import(name):
    seen['thread'] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    seen['session'] = open('/proc/self/autogroup').read().split()[-1] if ahead._AUTOGROUP.exists() else None
    return import_module(name)
ahead.importlib.import_module = look_and_import
ahead.import_ahead(sys.argv[1])
seen['main'] = os.getpriority(os.PRIO_PROCESS, 0)
seen['session after'] = open('/proc/self/autogroup').read().split()[-1] if ahead._AUTOGROUP.exists() else None
seen['modules'] = [name for name in sys.modules if name.startswith(('runner', 'jinja2', 'llama_cpp'))]
seen['threads'] = threading.active_count()
seen['mapped'] = [line.split()[-1] for line in open('/proc/self/maps') if 'lib' in line]
loading = sys.modules.get('runner.engine.llama_loading')
seen['back ends are up'] = loading is not None and loading.engine_log.cache_info().currsize > 0
print(seen)
"""


def report(engine: str) -> dict[str, Any]:
    """Of a process that leads a session, as a worker does."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT, engine],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        start_new_session=True,
        check=True,
    )
    found: dict[str, Any] = ast.literal_eval(done.stdout)
    return found


def test_everything_that_a_load_needs_is_imported_and_no_back_end_is_touched() -> None:
    found = report("llama")
    assert {"runner.worker.loop", "runner.engine.llama", "runner.chat.template", "jinja2"} <= set(
        found["modules"]
    )
    assert any("libllama" in path for path in found["mapped"])
    assert not found["back ends are up"]
    assert found["threads"] == 1


def test_the_scripted_engine_does_not_bring_the_other() -> None:
    found = report("scripted")
    assert "runner.engine.fake" in found["modules"]
    assert not any(name.startswith("llama_cpp") for name in found["modules"])


def test_imports_give_way_and_what_runs_the_model_does_not() -> None:
    found = report("scripted")
    assert found["thread"] == 10
    assert found["main"] == os.getpriority(os.PRIO_PROCESS, 0)
    assert found["session"] in ("10", None)
    assert found["session after"] in ("0", None)


def test_an_import_that_fails_is_the_processes_end() -> None:
    script = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from runner.worker.ahead import import_ahead; import_ahead('scripted')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


@pytest.fixture
def as_session_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getsid", lambda pid: os.getpid())


@pytest.mark.usefixtures("as_session_leader")
def test_the_priority_of_the_session_is_lowered_and_restored(tmp_path: Path) -> None:
    autogroup = tmp_path / "autogroup"
    with low_session_priority(autogroup):
        assert autogroup.read_text() == "10"
    assert autogroup.read_text() == "0"


def test_a_session_of_others_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getsid", lambda pid: 1)
    autogroup = tmp_path / "autogroup"
    with low_session_priority(autogroup):
        pass
    assert not autogroup.exists()


@pytest.mark.usefixtures("as_session_leader")
def test_without_groups_of_sessions_nothing_happens(tmp_path: Path) -> None:
    with low_session_priority(tmp_path / "nowhere" / "autogroup"):
        pass


@pytest.mark.usefixtures("as_session_leader")
@pytest.mark.parametrize(("refusals", "is_restored"), [(1, True), (49, True), (50, False)])
def test_restoring_is_tried_until_the_kernel_takes_it_and_given_up_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int, is_restored: bool
) -> None:
    autogroup = tmp_path / "autogroup"
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == refusals:
            autogroup.rmdir()  # until here it could not be opened for writing

    monkeypatch.setattr("runner.worker.ahead.time.sleep", pause)

    def lower_and_restore() -> None:
        with low_session_priority(autogroup):
            autogroup.unlink()
            autogroup.mkdir()

    if is_restored:
        lower_and_restore()
        assert autogroup.read_text() == "0"
        assert pauses == [0.1] * refusals
    else:
        with pytest.raises(OSError, match="could not be restored"):
            lower_and_restore()
