"""What a hostile server may answer: heads and bodies that drip, never end, lie or never come.

Each is a `Talk` for a `ScriptedServer`, ending when the client has had enough.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from tests.support.scripted_http import Reply, Talk, wait_for_close


def silence(connection: socket.socket) -> None:
    """No answer at all."""
    wait_for_close(connection)


def sending(head: bytes, *pieces: bytes) -> Talk:
    """The head, the pieces, and then nothing more, without an end."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        for piece in pieces:
            connection.sendall(piece)
        wait_for_close(connection)

    return talk


def sending_when(go: threading.Event, head: bytes, piece: bytes) -> Talk:
    """The head at once, the piece when it is time, and then nothing more."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        go.wait(10)
        with contextlib.suppress(OSError):
            connection.sendall(piece)
        wait_for_close(connection)

    return talk


def endless(head: bytes, piece: bytes) -> Talk:
    """The head, and then the same piece for as long as somebody reads."""

    def talk(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(head)
            while True:
                connection.sendall(piece)

    return talk


def closing(sent: bytes) -> Talk:
    """These bytes, and the end of the connection."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(sent)

    return talk


def redirect(location: str, status: int = 307) -> Reply:
    return Reply(status, b"", (("Location", location),))
