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
    watch = threading.Timer(deadline_s, _interrupt, (threading.get_ident(),))
    watch.daemon = True
    try:
        watch.start()
        try:
            return function()
        finally:
            # Once the watch has ended nothing new can come; what came late and is still pending is taken
            # back.
            watch.cancel()
            watch.join()
            _set_async_exc(threading.get_ident(), ctypes.py_object())
    except _Interruption:
        watch.join()  # the interruption may have hit the join above; there is no second one
        raise DeadlinePassed(f"not done after {deadline_s:g} s") from None


def _interrupt(thread_id: int) -> None:
    _set_async_exc(thread_id, _Interruption)
