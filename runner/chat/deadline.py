"""A deadline for code that would not look at a clock: it ends by an exception from outside.

The exception is asynchronous (CPython delivers it between two bytecodes of the thread), so it reaches a
template that loops, and does not reach one native call that lasts: for that the worker arms a timer of the
kernel (`runner.worker.limits`). Imports the standard library.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_async_exc.restype = ctypes.c_int


class _Interruption(BaseException):
    """No Exception, so that neither a library's `except Exception` nor a filter can swallow it."""


class DeadlinePassed(Exception):
    """The code under a deadline was cut."""


def call_before(deadline_s: float, function: Callable[[], T]) -> T:
    """`function()`, or DeadlinePassed when it has not returned after `deadline_s` seconds.

    `function` may be cut anywhere, also in its `finally`: give it nothing to own that outlives the call.
    """
    watch = _Watch(deadline_s)
    watch.start()
    try:
        watch.begin()
        try:
            value = function()
        except _Interruption:
            raise
        except BaseException:  # kept in no variable: that would keep the frames of `function` as well
            watch.settle()
            watch.await_interruption()
            raise
        watch.settle()
        watch.await_interruption()
        return value
    except _Interruption:
        watch.settle()  # the interruption, of which there is one at most, may have hit the calls above
        raise DeadlinePassed(f"not done after {deadline_s:g} s") from None
    finally:
        watch.join()


class _Watch(threading.Thread):
    """Interrupts the thread that made it, once, unless that thread settles in time after it began.

    `settle` may itself be interrupted at any bytecode, and is then called again. So it uses bare locks, each
    operation of which is one native call, and can be repeated from wherever it was cut: Events and joins hold
    locks of their own across bytecodes, which an interruption can leave locked.
    """

    def __init__(self, deadline_s: float) -> None:
        super().__init__(name="deadline", daemon=True)
        self._deadline_s = deadline_s
        self._watched_id = threading.get_ident()
        self._begun = threading.Lock()
        self._begun.acquire()
        self._settled = threading.Lock()
        self._settled.acquire()
        self._over = threading.Lock()
        self._over.acquire()
        self._is_over = False
        self._has_fired = False

    def begin(self) -> None:
        """Time counts from here. Not from `start`, which must not be interrupted either."""
        self._begun.release()

    def run(self) -> None:
        self._begun.acquire()
        if not self._settled.acquire(timeout=self._deadline_s):
            self._has_fired = True
            _set_async_exc(self._watched_id, _Interruption)
        self._is_over = True
        self._over.release()

    def settle(self) -> None:
        """Afterwards no interruption is sent. One that was sent may still be on its way."""
        try:
            self._settled.release()
        except RuntimeError:
            pass  # released before
        if not self._is_over:  # nobody can have taken the lock before it was released
            self._over.acquire()

    def await_interruption(self) -> None:
        """After `settle`: take what is on its way, if anything.

        CPython could take it back (`PyThreadState_SetAsyncExc` with NULL), but then 3.11 goes on looking for
        it before every bytecode, and never gets past the first one of a function under a tracer.
        """
        while self._has_fired:
            pass
