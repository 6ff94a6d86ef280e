"""Kinds of death told apart (L02)."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.deaths import DeathKind, cause_of_exit, kernel_memory_kills
from actors.process import ExitStatus

BAD_ALLOC = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc"


@pytest.mark.parametrize(
    ("signal", "tail", "kind", "text"),
    [
        ("SIGSEGV", "", DeathKind.SEGMENTATION_FAULT, "signal SIGSEGV"),
        ("SIGSEGV", BAD_ALLOC, DeathKind.SEGMENTATION_FAULT, "signal SIGSEGV"),
        ("SIGBUS", "", DeathKind.BUS_ERROR, "signal SIGBUS"),
        ("SIGABRT", "GGML_ASSERT failed", DeathKind.ABORT, "signal SIGABRT"),
        ("SIGABRT", BAD_ALLOC, DeathKind.OUT_OF_MEMORY, "signal SIGABRT, beyond its memory limit"),
        ("SIGKILL", "", DeathKind.KILLED, "signal SIGKILL, out of memory?"),
        ("SIGALRM", "", DeathKind.OTHER_SIGNAL, "signal SIGALRM"),
    ],
)
def test_L02_signals_are_told_apart(signal: str, tail: str, kind: DeathKind, text: str) -> None:
    cause = cause_of_exit(ExitStatus(None, signal), tail)
    assert (cause.kind, cause.text) == (kind, text)


def test_L02_a_kill_by_the_kernel_for_lack_of_memory_is_told_from_others() -> None:
    cause = cause_of_exit(ExitStatus(None, "SIGKILL"), "", was_out_of_memory=True)
    assert (cause.kind, cause.text) == (DeathKind.OUT_OF_MEMORY, "signal SIGKILL, out of memory")


@pytest.mark.parametrize(
    ("tail", "kind", "text"),
    [
        ("", DeathKind.EXIT, "exit code 1"),
        ("no traceback", DeathKind.EXIT, "exit code 1"),
        (
            'Traceback (most recent call last):\n  File "x"\n    y\nKeyError: 5',
            DeathKind.PYTHON_EXCEPTION,
            "exit code 1, Python exception KeyError",
        ),
        (
            "Traceback (most recent call last):\n  x\n\n  y\nllama_cpp.Bad",
            DeathKind.PYTHON_EXCEPTION,
            "exit code 1, Python exception llama_cpp.Bad",
        ),
        (
            "Traceback (most recent call last):\n  x\nA: 1\nTraceback (most recent call last):\n  x\nB: 2",
            DeathKind.PYTHON_EXCEPTION,
            "exit code 1, Python exception B",
        ),
        (
            "Traceback (most recent call last):\n  x\nMemoryError",
            DeathKind.OUT_OF_MEMORY,
            "exit code 1, Python exception MemoryError",
        ),
        ("Traceback (most recent call last):\n  x\n<script>", DeathKind.EXIT, "exit code 1"),
    ],
)
def test_L02_a_python_exception_is_told_by_its_class_and_not_by_its_text(
    tail: str, kind: DeathKind, text: str
) -> None:
    cause = cause_of_exit(ExitStatus(1, None), tail)
    assert (cause.kind, cause.text) == (kind, text)


def test_the_kernels_count_is_read_where_there_is_one(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    assert kernel_memory_kills(vmstat) == 0
    vmstat.write_text("pgfault 12\noom_kill 3\ndrop_slab 0\n")
    assert kernel_memory_kills(vmstat) == 3
    vmstat.write_text("pgfault 12\n")
    assert kernel_memory_kills(vmstat) == 0
