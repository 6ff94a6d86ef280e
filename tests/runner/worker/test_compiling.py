"""Constraints compiled beside the steps: outcomes, the deadline, and what happens while it has passed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import pytest

from runner.domain.constraints import Constraint, ConstraintKind
from runner.domain.engine import EngineOptions
from runner.engine.constraints import CompiledConstraint, ConstraintCompiler
from runner.engine.fake import ScriptedBackend
from runner.errors import EngineFailed, InvalidParameter, QueueFull, RunnerError
from runner.worker.compiling import Compiling

PATIENCE_S = 20.0
BACKEND = ScriptedBackend(EngineOptions(context_size=64, n_cells=64))


def regex(source: str) -> Constraint:
    return Constraint(kind=ConstraintKind.REGEX, source=source, path="guided_regex")


class Compiler(ConstraintCompiler):
    """Compiles what it should, and hangs on `hang` until it is let go."""

    def __init__(self) -> None:
        super().__init__(BACKEND.new_constraint_tokenizer)
        self.let_go = threading.Event()
        self.n_compiled = 0

    def compile(self, constraint: Constraint) -> CompiledConstraint:
        self.n_compiled += 1
        if constraint.source == "hang":
            assert self.let_go.wait(PATIENCE_S)
        if constraint.source == "panic":
            raise Panic
        return super().compile(constraint)


class Panic(BaseException):
    """As pyo3's, which is no Exception."""


class Parts:
    def __init__(self, compiler: Compiler, compiling: Compiling) -> None:
        self.compiler = compiler
        self.compiling = compiling
        self._outcomes: SimpleQueue[CompiledConstraint | RunnerError] = SimpleQueue()

    def outcome(self, source: str) -> CompiledConstraint | RunnerError:
        self.compiling.submit(regex(source), self._outcomes.put)
        return self._outcomes.get(timeout=PATIENCE_S)


@contextmanager
def compiling(deadline_s: float = PATIENCE_S) -> Iterator[Parts]:
    compiler = Compiler()
    parts = Parts(compiler, Compiling(compiler, deadline_s=deadline_s))
    yield parts
    compiler.let_go.set()
    assert parts.compiling.close(PATIENCE_S)


def test_what_compiles_is_handed_back_and_what_does_not_is_refused() -> None:
    with compiling() as parts:
        assert isinstance(parts.outcome("a+"), CompiledConstraint)
        refused = parts.outcome("(a")
        assert isinstance(refused, InvalidParameter)
        assert refused.faults[0].path == "guided_regex"


def test_equal_constraints_are_compiled_once() -> None:
    with compiling() as parts:
        assert parts.outcome("a+") is parts.outcome("a+")
        assert parts.compiler.n_compiled == 1


def test_no_thread_starts_before_there_is_a_constraint() -> None:
    before = threading.active_count()
    with compiling():
        assert threading.active_count() == before


def test_N15_what_is_overdue_is_refused_and_meanwhile_only_what_was_compiled_is_served(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with compiling(deadline_s=0.2) as parts:
        parts.compiler.prepare()
        kept = parts.compiler.compile(regex("a+"))
        parts.compiler.keep(regex("a+"), kept)
        overdue = parts.outcome("hang")
        assert isinstance(overdue, InvalidParameter)
        assert str(overdue) == "guided_regex: takes longer than 0.2 s to compile"
        assert isinstance(parts.outcome("b+"), QueueFull)
        assert parts.outcome("a+") is kept
        assert not parts.compiling.close(0.05)
    assert capfd.readouterr().err == ""


def test_a_panic_of_the_library_ends_no_thread_and_lets_nothing_through(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with compiling() as parts:
        assert isinstance(parts.outcome("panic"), EngineFailed)
        assert isinstance(parts.outcome("a+"), CompiledConstraint)
    assert "Panic" in capfd.readouterr().err
