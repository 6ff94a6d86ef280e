"""Compiles the constraints of requests, in threads of its own, so that neither a step nor the preparation of
other requests waits for a grammar.

Owns the deadline of N15. Native code cannot be interrupted: what is overdue is left to itself in its thread,
its request is refused, and until it is done nothing else is compiled; what has been compiled before is served
all along. Imports the engine's compiler.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue

import attrs

from runner.domain.constraints import COMPILE_S, Constraint
from runner.engine.constraints import CompiledConstraint, ConstraintCompiler
from runner.errors import EngineFailed, FieldFault, InvalidParameter, QueueFull, RunnerError

OnDone = Callable[[CompiledConstraint | RunnerError], None]
"""Called from the compiling thread, once."""


@attrs.frozen
class _Job:
    constraint: Constraint
    on_done: OnDone


class Compiling:
    """A thread that starts with the first constraint. For one thread to submit to and close."""

    def __init__(self, compiler: ConstraintCompiler, *, deadline_s: float = COMPILE_S) -> None:
        self._compiler = compiler
        self._deadline_s = deadline_s
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._overdue: _Attempt | None = None

    def __repr__(self) -> str:
        return f"<Compiling: {self._compiler!r}, {'stuck' if self._is_stuck else 'ready'}>"

    def submit(self, constraint: Constraint, on_done: OnDone) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="constraints", daemon=True)
            self._thread.start()
        self._jobs.put(_Job(constraint, on_done))

    def close(self, timeout_s: float) -> bool:
        """End the threads and wait for them; False when native code is still at it."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        if self._overdue is not None:
            self._overdue.join(timeout_s)
        return not self._is_stuck

    @property
    def _is_stuck(self) -> bool:
        return self._overdue is not None and self._overdue.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.on_done(self._outcome(job.constraint))

    def _outcome(self, constraint: Constraint) -> CompiledConstraint | RunnerError:
        try:
            return self._compiler.cached(constraint) or self._compiled(constraint)
        except RunnerError as error:
            return error
        except BaseException:  # a panic of the library is no Exception
            sys.stderr.write("compiling a constraint failed\n")
            traceback.print_exc()
            return EngineFailed("the constraint could not be compiled")

    def _compiled(self, constraint: Constraint) -> CompiledConstraint:
        if self._is_stuck:
            raise QueueFull("a constraint of another request is still being compiled")
        self._compiler.prepare()  # long for large vocabularies, once, and no fault of this constraint
        attempt = _Attempt(self._compiler, constraint)
        attempt.start()
        attempt.join(self._deadline_s)
        if attempt.is_alive():
            self._overdue = attempt
            what = f"takes longer than {self._deadline_s:g} s to compile"
            raise InvalidParameter(FieldFault(constraint.path, what))
        compiled = attempt.result()
        self._compiler.keep(constraint, compiled)
        return compiled


class _Attempt(threading.Thread):
    """One compilation."""

    def __init__(self, compiler: ConstraintCompiler, constraint: Constraint) -> None:
        super().__init__(name="constraint", daemon=True)
        self._compiler = compiler
        self._constraint = constraint
        self._outcome: CompiledConstraint | BaseException | None = None

    def run(self) -> None:
        try:
            self._outcome = self._compiler.compile(self._constraint)
        except BaseException as error:
            self._outcome = error

    def result(self) -> CompiledConstraint:
        if isinstance(self._outcome, CompiledConstraint):
            return self._outcome
        assert self._outcome is not None, "asked before it was done"
        raise self._outcome
