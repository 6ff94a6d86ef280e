"""Fixtures that every test may use, and the leak check that every test passes."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio.testing
from hypothesis import settings

from tests.support.model_files import CACHE

settings.register_profile("shared", deadline=None)  # machines are shared; a slow example is no fault
settings.load_profile("shared")

# Under nohup or as a shell's background job, children would inherit that these are ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def virtual_clock() -> trio.testing.MockClock:
    """A test that asks for it runs on this clock, which jumps whenever every task waits."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> str | tuple[str, dict[str, object]]:
    if "virtual_clock" in request.fixturenames:
        return "trio", {"clock": request.getfixturevalue("virtual_clock")}
    return "trio"


@pytest.fixture(scope="session")
def default_model_file() -> Path:
    """SmolLM2-135M-Instruct Q4_1; `scripts/test` puts it there."""
    path = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.fail(f"{path.name} is missing; scripts/test fetches it")
    return path


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No child process, no descriptor and no thread of ours outlives a test.

    trio keeps worker threads for reuse for 10 s; they are its cache, not a leak.
    """
    descriptors_before = set(_open_descriptors())
    children_before = _children()  # a daemon that several tests share belongs to its fixture
    threads_before = {thread.ident for thread in threading.enumerate()}
    yield
    left_children = _children() - children_before
    assert not left_children, f"processes left behind: {left_children}"
    left_threads = [
        thread
        for thread in threading.enumerate()
        if thread.ident not in threads_before and not thread.name.startswith("Trio thread")
    ]
    assert not left_threads, f"threads left behind: {left_threads}"
    if _left_descriptors(descriptors_before):
        gc.collect()  # only then, since it costs more than most tests: garbage may still hold some
        left = _left_descriptors(descriptors_before)
        assert not left, f"descriptors left behind: {left}"


def _left_descriptors(before: set[int]) -> dict[int, str]:
    return {fd: name for fd, name in _open_descriptors().items() if fd not in before and _is_ours(name)}


def _children() -> set[int]:
    """Process ids, from the kernel's own list: a look at every process would cost more than most tests."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except OSError:  # the thread has ended meanwhile
            continue
    return found


def _open_descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:  # the descriptor of this very listing
            continue
    return found


def _is_ours(name: str) -> bool:
    shared = ("/dev/urandom", "/proc/", "anon_inode:[eventpoll]")
    return not name.startswith(shared) and ".hypothesis" not in name
