"""Giving up a transfer from another thread.

Owns the one switch between an event loop and the threads that block for it. Imports errors only. Where
sockets are put under it: `runner/registry/connections.py`.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from runner.errors import TransferAborted


class Abort:
    """One switch for everything that belongs to one transfer; thread-safe, and thrown once.

    Whoever blocks on a socket under it wakes up and raises TransferAborted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._thrown = threading.Event()

    @property
    def is_aborted(self) -> bool:
        return self._thrown.is_set()

    def abort(self) -> None:
        """Wake everyone; does not block. Doing it again does nothing."""
        with self._lock:
            self._thrown.set()
            for held in self._sockets:
                _wake(held)

    def raise_if_aborted(self) -> None:
        """Raises TransferAborted after `abort`."""
        if self._thrown.is_set():
            raise TransferAborted("the transfer was given up")

    def wait(self, seconds: float) -> None:
        """A pause that `abort` ends. Raises TransferAborted."""
        self._thrown.wait(seconds)
        self.raise_if_aborted()

    def watch(self, held: socket.socket) -> None:
        """Put a socket under the switch until `release`. Raises TransferAborted when that is thrown."""
        with self._lock:
            self.raise_if_aborted()
            self._sockets.add(held)

    def release(self, held: socket.socket) -> None:
        """The socket is somebody else's now. Releasing what is not watched does nothing."""
        with self._lock:
            self._sockets.discard(held)

    def __repr__(self) -> str:
        return f"<Abort {'thrown' if self.is_aborted else f'of {len(self._sockets)} sockets'}>"


def _wake(held: socket.socket) -> None:
    """End both directions, so that a blocked read or write returns.

    The method of the plain socket, since that of a TLS socket first drops the state its reader is using.
    """
    with contextlib.suppress(OSError):  # not yet connected, or closed meanwhile
        socket.socket.shutdown(held, socket.SHUT_RDWR)
