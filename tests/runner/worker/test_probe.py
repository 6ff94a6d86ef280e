"""The probe's process: its arguments, its parent, its question. What it answers is tested in
`tests/actors/test_probing.py` and `tests/runner/engine/test_llama_memory.py`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runner.wire.codec import encode
from runner.wire.messages import Shutdown

ROOT = Path(__file__).parents[3]


def start(*arguments: str, fd: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runner.worker.probe", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=() if fd is None else (fd,),
        cwd=ROOT,
        text=True,
    )


def run(*arguments: str, fd: int | None = None) -> tuple[int, str]:
    process = start(*arguments, fd=fd)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.parametrize(
    "arguments", [(), ("--channel-fd", "x", "--parent-pid", "1"), ("--parent-pid", "1", "--channel-fd", "1")]
)
def test_other_arguments_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert output.startswith("usage: python -m runner.worker.probe ")


def test_W10_a_probe_whose_parent_is_gone_ends_at_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        code, _ = run("--channel-fd", str(theirs.fileno()), "--parent-pid", "1", fd=theirs.fileno())
    assert code == 1


def test_a_probe_that_is_not_asked_ends() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = start(
            "--channel-fd", str(theirs.fileno()), "--parent-pid", str(os.getpid()), fd=theirs.fileno()
        )
        ours.close()
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (3, "")


@pytest.mark.parametrize("question", [b"\xff" * 8, encode(Shutdown())])
def test_W07_a_probe_that_is_asked_something_else_ends(question: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(question)
        code, output = run(
            "--channel-fd", str(theirs.fileno()), "--parent-pid", str(os.getpid()), fd=theirs.fileno()
        )
    assert code == 1
    assert "ProtocolFault" in output
