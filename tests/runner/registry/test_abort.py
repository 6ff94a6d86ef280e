from __future__ import annotations

import socket
import threading

import pytest

from runner.errors import TransferAborted
from runner.registry.abort import Abort


def test_a_blocked_read_is_woken() -> None:
    abort = Abort()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        abort.watch(ours)
        waker = threading.Thread(target=abort.abort)
        waker.start()
        assert ours.recv(1) == b""
        waker.join()
    assert abort.is_aborted
    with pytest.raises(TransferAborted):
        abort.raise_if_aborted()


def test_a_pause_ends_at_once() -> None:
    abort = Abort()
    waker = threading.Thread(target=abort.abort)
    waker.start()
    with pytest.raises(TransferAborted):
        abort.wait(1000)
    waker.join()


def test_a_pause_that_nobody_ends_lasts() -> None:
    Abort().wait(0)


def test_nothing_new_is_watched_after_the_end() -> None:
    abort = Abort()
    abort.abort()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TransferAborted):
        abort.watch(ours)


def test_what_was_released_is_left_alone() -> None:
    abort = Abort()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        abort.watch(ours)
        abort.release(ours)
        abort.release(ours)
        abort.abort()
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_sockets_that_are_closed_or_not_connected_do_no_harm() -> None:
    abort = Abort()
    unconnected = socket.socket()
    ours, theirs = socket.socketpair()
    with unconnected:
        abort.watch(unconnected)
        abort.watch(ours)
        ours.close()
        theirs.close()
        assert repr(abort) == "<Abort of 2 sockets>"
        abort.abort()
        abort.abort()
    assert repr(abort) == "<Abort thrown>"
