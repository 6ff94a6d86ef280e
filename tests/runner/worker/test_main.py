"""`python -m runner.worker` as a real process: descriptors, ends, limits. The scripted engine throughout, and
the real one in the tests marked for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from runner.domain.engine import EngineOptions
from runner.domain.events import Accepted, Failed, Finished
from runner.domain.generation import ChatMessage, ChatPrompt, TextPrompt
from runner.wire.messages import Cancel, Hello, LoadFailed, LoadModel, LoadProgress, Shutdown
from runner.worker.loop import EXIT_DONE, EXIT_PROTOCOL
from tests.support.worker_peer import (
    ENDLESS,
    PATIENCE_S,
    ROOMY,
    WorkerProcess,
    chat,
    generate,
    has_ended,
    text_of,
    worker_process,
)

_DOUBLING = (
    "{% set ns = namespace(x=[1], y=[1]) %}"
    "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
)
_LONG_NATIVE_CALL = _DOUBLING + "{{ ns.x == ns.y }}"
"""Compares 2^60 pairs in one native call: no ceiling applies and no exception reaches it."""
_HOARDER = (
    "{% set ns = namespace(l=[]) %}"
    "{% for i in range(10000) %}{% set ns.l = ns.l + ['a' * 1000000 ~ i] %}{% endfor %}"
)
"""Holds ten thousand megabytes in texts that are each allowed."""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"no directives")
    return path


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with worker_process() as started:
        yield started


@pytest.fixture
def loaded(worker: WorkerProcess, weights: Path) -> WorkerProcess:
    worker.load(weights)
    return worker


def test_a_process_loads_answers_and_ends_politely(worker: WorkerProcess, weights: Path) -> None:
    worker.load(weights)
    worker.send(chat("one", "[[say hello]]"))
    assert text_of(worker.outcome("one")) == "hello"
    worker.send(Shutdown())
    assert worker.wait() == EXIT_DONE
    assert worker.output() == ("", "")


def test_hello_names_the_process(worker: WorkerProcess) -> None:
    hello = worker.receive()
    assert isinstance(hello, Hello)
    assert hello.pid == worker.popen.pid


def test_concurrent_generations_share_steps(worker: WorkerProcess, weights: Path) -> None:
    worker.load(weights, options=ROOMY)
    worker.send(chat("a", ENDLESS), chat("b", ENDLESS))
    assert worker.step_shared_by("a", "b").running == 2


def test_a_cancelled_generation_leaves_the_others_alone(worker: WorkerProcess, weights: Path) -> None:
    worker.load(weights, options=ROOMY)
    worker.send(chat("endless", ENDLESS))
    worker.events_until(lambda events: len(events.get("endless", [])) > 3)
    worker.send(Cancel("endless"), chat("next", "[[say done]]"))
    events = worker.outcomes("next")
    assert text_of(events["next"]) == "done"
    assert not has_ended(events.get("endless", []))


def test_W10_a_closed_channel_ends_the_process_also_in_the_middle_of_a_step(loaded: WorkerProcess) -> None:
    loaded.send(chat("stuck", "[[hang after 2]]"))
    loaded.events_until(lambda events: len(events.get("stuck", [])) >= 2)
    loaded.close()
    assert loaded.wait() == EXIT_DONE


def test_W10_the_process_ends_when_its_parent_is_killed_although_the_channel_stays_open(
    weights: Path,
) -> None:
    """The parent in between is killed; its worker's channel is held open by this test."""
    mine, theirs = socket.socketpair()
    with mine:
        fd = theirs.fileno()
        script = (
            "import os, subprocess, sys, time\n"
            f"child = subprocess.Popen([sys.executable, '-m', 'runner.worker', '--channel-fd', '{fd}',"
            f" '--parent-pid', str(os.getpid())], pass_fds=[{fd}])\n"
            "print(child.pid, flush=True)\n"
            "child.wait()\n"
        )
        with theirs:
            parent = subprocess.Popen([sys.executable, "-c", script], pass_fds=[fd], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        mine.settimeout(PATIENCE_S)
        assert mine.recv(4096)  # Hello: it is up and armed
        parent.kill()
        parent.communicate(timeout=PATIENCE_S)
        assert not psutil.wait_procs([worker], timeout=PATIENCE_S)[1]


def test_a_process_that_is_not_the_child_of_the_named_parent_ends_before_it_starts() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        fd = theirs.fileno()
        ended = subprocess.run(
            [sys.executable, "-m", "runner.worker", "--channel-fd", str(fd), "--parent-pid", "1"],
            pass_fds=[fd],
            capture_output=True,
            timeout=PATIENCE_S,
        )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--channel-fd", "3"],
        ["--channel-fd", "x", "--parent-pid", "1"],
        ["--parent-pid", "1", "--channel-fd", "3"],
    ],
)
def test_wrong_usage_is_told(arguments: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "runner.worker", *arguments],
        capture_output=True,
        timeout=PATIENCE_S,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: ")


def test_W01_stdin_is_empty_and_no_core_is_dumped_and_the_channel_is_no_longer_inherited(
    loaded: WorkerProcess,
) -> None:
    process = psutil.Process(loaded.popen.pid)
    descriptors = Path(f"/proc/{process.pid}/fd")
    assert (descriptors / "0").readlink() == Path(os.devnull)
    assert (descriptors / "1").readlink() == (descriptors / "2").readlink()
    sockets = [path for path in descriptors.iterdir() if str(path.readlink()).startswith("socket:")]
    assert len(sockets) == 1
    flags = (descriptors.parent / "fdinfo" / sockets[0].name).read_text().split("flags:")[1].split()[0]
    assert int(flags, 8) & os.O_CLOEXEC
    assert process.rlimit(psutil.RLIMIT_CORE)[0] <= 1


def test_what_a_library_prints_does_not_reach_the_protocol(loaded: WorkerProcess) -> None:
    loaded.send(chat("noisy", "[[noise 1000]][[say hello]]"))
    assert text_of(loaded.outcome("noisy")) == "hello"
    loaded.send(Shutdown())
    assert loaded.wait() == EXIT_DONE
    stdout, stderr = loaded.output()
    assert stdout == ""
    assert stderr.count(".") == 2000


def test_an_idle_process_sleeps(loaded: WorkerProcess) -> None:
    loaded.send(chat("one", "[[say hello]]"))
    loaded.outcome("one")
    process = psutil.Process(loaded.popen.pid)
    while (
        process.status() != psutil.STATUS_SLEEPING
    ):  # what is left of the last step; pytest's limit is the bound
        pass
    before = process.cpu_times().user
    assert {process.status() for _ in range(500)} == {psutil.STATUS_SLEEPING}
    assert process.cpu_times().user - before < 0.05


def test_bytes_outside_the_protocol_end_the_process(loaded: WorkerProcess) -> None:
    loaded.send_bytes(b"GET / HTTP/1.1\r\n\r\n")
    assert loaded.wait() == EXIT_PROTOCOL
    assert "protocol fault" in loaded.output()[1]


def test_sigterm_ends_an_idle_process(loaded: WorkerProcess) -> None:
    loaded.popen.terminate()
    assert loaded.wait() == -signal.SIGTERM


def test_an_exception_in_the_engine_ends_the_process_with_a_traceback(loaded: WorkerProcess) -> None:
    loaded.send(chat("bad", "[[crash exception]]"))
    assert loaded.wait() == 1
    assert "Traceback" in loaded.output()[1]


def test_G05_a_crash_in_native_code_says_where_on_stderr(loaded: WorkerProcess) -> None:
    loaded.send(chat("bad", "[[crash segv]]"))
    assert loaded.wait() == -signal.SIGSEGV
    assert "Segmentation fault" in loaded.output()[1]


def test_G07_a_template_in_a_native_call_that_does_not_return_ends_the_worker(
    worker: WorkerProcess, weights: Path
) -> None:
    worker.load(weights, template=_LONG_NATIVE_CALL)
    worker.send(chat("stuck", "x"))
    assert worker.wait() == -signal.SIGALRM


def test_G07_a_template_that_hoards_memory_or_time_fails_and_the_worker_lives(
    worker: WorkerProcess, weights: Path
) -> None:
    worker.load(weights, template=_HOARDER)
    worker.send(chat("hoarder", "x"), generate("other", TextPrompt("[[say hello]]")))
    events = worker.outcomes("hoarder", "other")
    (failed,) = events["hoarder"]
    assert isinstance(failed, Failed)
    assert failed.code == "template_failed"
    assert text_of(events["other"]) == "hello"
    assert psutil.Process(worker.popen.pid).memory_info().rss < 400 * 2**20


def test_the_worker_imports_neither_http_nor_trio_nor_oras() -> None:
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, runner.worker.loop, runner.worker.limits, runner.chat.template, runner.engine.fake\n"
            "print(*sorted({name.partition('.')[0] for name in sys.modules}))",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout.split()
    assert not {"trio", "quart", "hypercorn", "oras", "http", "requests", "asyncio", "llama_cpp"} & set(
        listed
    )


# the real engine

_REAL = EngineOptions(context_size=512, n_cells=1024, max_sequences=4, prefill_chunk=64, n_threads=1)


@pytest.fixture
def smollm(worker: WorkerProcess, default_model_file: Path) -> WorkerProcess:
    loaded = worker.load(default_model_file, engine="llama", options=_REAL)
    assert loaded.trained_context_size == 8192
    assert loaded.n_vocab == 49152
    return worker


@pytest.mark.real_model
def test_a_real_model_answers_two_at_once_in_shared_steps_and_one_is_cancelled(smollm: WorkerProcess) -> None:
    smollm.send(
        chat("a", "Name a colour.", max_tokens=12, ignore_eos=True),
        chat("b", "Name an animal.", max_tokens=12, ignore_eos=True),
        chat("c", "Tell a long story.", max_tokens=400, ignore_eos=True),
    )
    assert smollm.step_shared_by("a", "b", "c").running == 3
    events = smollm.outcomes("a", "b")
    assert text_of(events["a"])
    assert text_of(events["b"])
    smollm.send(Cancel("c"), chat("d", "Say hi.", max_tokens=2))
    assert isinstance(smollm.outcome("d")[-1], Finished)
    assert smollm.steps[-1].running == 0
    smollm.send(Shutdown())
    assert smollm.wait() == EXIT_DONE


@pytest.mark.real_model
def test_W10_a_closed_channel_ends_a_real_model_in_native_code(smollm: WorkerProcess) -> None:
    smollm.send(generate("long", TextPrompt("word " * 400), max_tokens=100, ignore_eos=True))
    smollm.events_until(lambda events: "long" in events)
    smollm.close()
    assert smollm.wait() == EXIT_DONE


@pytest.mark.real_model
def test_G11_a_real_prompt_that_is_too_long_is_refused_with_both_numbers(smollm: WorkerProcess) -> None:
    smollm.send(chat("long", "word " * 600))
    (failed,) = smollm.outcome("long")
    assert isinstance(failed, Failed)
    assert failed.code == "context_length_exceeded"
    assert failed.context_size == 512
    assert failed.prompt_tokens is not None
    assert 600 < failed.prompt_tokens < 700


@pytest.mark.real_model
def test_a_file_that_is_no_model_fails_to_load(worker: WorkerProcess, weights: Path) -> None:
    answer = worker.try_to_load(weights, engine="llama", options=_REAL)
    assert isinstance(answer, LoadFailed)
    assert answer.code == "loading_failed"
    assert worker.wait() == EXIT_DONE


@pytest.mark.real_model
def test_a_shutdown_gives_up_a_real_load(worker: WorkerProcess, default_model_file: Path) -> None:
    assert isinstance(worker.receive(), Hello)
    worker.send(LoadModel(engine="llama", weights_paths=(str(default_model_file),), options=_REAL))
    assert isinstance(worker.receive(), LoadProgress)
    worker.send(Shutdown())
    assert worker.wait() == EXIT_DONE


@pytest.mark.real_model
def test_system_and_developer_messages_are_the_same_to_a_template_that_knows_one(
    smollm: WorkerProcess,
) -> None:
    counts = []
    for role in ("system", "developer"):
        prompt = ChatPrompt(
            messages=(ChatMessage(role=role, content="Be brief."), ChatMessage(role="user", content="Hi"))
        )
        smollm.send(generate(role, prompt, max_tokens=1))
        accepted = smollm.outcome(role)[0]
        assert isinstance(accepted, Accepted)
        counts.append(accepted.prompt_tokens)
    assert counts[0] == counts[1]
