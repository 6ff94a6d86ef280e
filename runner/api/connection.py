"""One connection: its socket, its deadlines, its end.

Owns reading, writing and closing. Reads are under a deadline that follows what is awaited (a head, the next
request, progress of a body); writes are tried at once and wait only for a full socket, for a bounded time.
Whatever goes wrong ends this connection only. May import trio; the meaning of the bytes is
`runner.api.protocol`'s, the set of all connections `runner.api.server`'s.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import struct
import termios
from collections.abc import Callable

import attrs
import trio

from runner.api.errors import refusal_of
from runner.api.protocol import ClientGone, Http1Protocol, Phase, ProtocolSettings
from runner.errors import RunnerError

_READ_BYTES = 64 * 1024
_WRITE_BYTES = 64 * 1024  # what must leave within one write deadline: a slow but living reader keeps up
_WRITES_UNTIL_YIELD = 16  # a source that always has more must not starve the rest of the daemon
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@attrs.frozen(kw_only=True)
class Deadlines:
    """Seconds. `body_s` is the time for each further `body_progress_bytes` of a body, `write_s` for each
    64 KiB that leave; `linger_s` for a refused client to stop sending and read the answer."""

    head_s: float = 10.0
    body_s: float = 30.0
    body_progress_bytes: int = 1024
    keep_alive_s: float = 75.0
    write_s: float = 30.0
    linger_s: float = 2.0


class Connection:
    """Serve one accepted stream with `run`. The other methods are the server's, and never wait."""

    def __init__(
        self,
        stream: trio.SocketStream,
        settings: ProtocolSettings,
        deadlines: Deadlines,
        on_answered: Callable[[Connection], None],
    ) -> None:
        self._stream = stream
        self._settings = settings
        self._deadlines = deadlines
        self._on_answered = on_answered
        self._fd = stream.socket.fileno()
        self._protocol: Http1Protocol | None = None
        self._nursery: trio.Nursery | None = None
        # reading
        self._is_over = False
        self._has_left = False
        self._is_receiving = False
        self._is_woken = False
        self._early = b""
        self._read_scope = trio.CancelScope()
        self._read_deadline = trio.current_time() + deadlines.head_s
        self._is_head_timed = True
        self._body_mark_bytes = 0
        # writing
        self._write_lock = trio.Lock()
        self._writes = 0
        self._is_torn = False

    @property
    def is_idle(self) -> bool:
        """No request is running or being read; half a head counts as nothing."""
        return self._protocol is None or self._protocol.phase is Phase.HEAD

    async def run(self) -> None:
        """Serve until either side ends it. Raises whatever is our fault; the socket is closed in any case."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._protocol = Http1Protocol(
                    self._settings, self, self._nursery, self._address("peer"), self._address("own")
                )
                await self._read_until_over()
                self._nursery.cancel_scope.cancel()
            await self._take_leave()
        finally:
            self._close()

    def close_if_idle(self) -> None:
        if self.is_idle:
            self.hang_up()

    def give_way(self) -> bool:
        """Close it for the sake of a new one, if a request was answered and nothing of another has arrived.

        One that has not asked yet stays: its client is about to, and has `head_s` to do so. A client that has
        had an answer must expect the end of its connection at any time (RFC 9112, section 9.5).
        """
        is_kept = self.is_idle and not self._is_head_timed and not self._early
        if self._is_over or not is_kept or self._has_unread_bytes():
            return False
        self.hang_up()
        return True

    def end_early(self, error: RunnerError) -> None:
        """Give a running stream its last words, an unanswered request this error; cut off anything else."""
        if self._is_over or self._protocol is None or self._nursery is None:
            return
        if self._protocol.early_end.is_pumping:
            self._protocol.early_end.request(error)
        else:
            self._nursery.start_soon(self._protocol.refuse, refusal_of(error))

    def abort(self) -> None:
        """End at once, by a reset; a client that does not read cannot delay it."""
        self._is_torn = True
        self.hang_up()

    # Link: what the protocol asks for

    async def write(self, data: bytes) -> None:
        """Send all of it. Waits only when the socket is full; raises `ClientGone` when that does not help."""
        if self._write_lock.locked():
            async with self._write_lock:
                await self._write_slowly(memoryview(data))
            return
        sent = self._write_some(data)
        if sent < len(data):
            self._write_lock.acquire_nowait()
            try:
                await self._write_slowly(memoryview(data)[sent:])
            finally:
                self._write_lock.release()
        self._writes += 1
        if self._writes >= _WRITES_UNTIL_YIELD:
            self._writes = 0
            await trio.lowlevel.checkpoint()

    def next_request(self, early: bytes) -> None:
        self._on_answered(self)
        self._read_deadline = trio.current_time() + self._deadlines.keep_alive_s
        self._is_head_timed = False
        self._early = early
        if early or not self._is_receiving:
            self._is_woken = True
            self._read_scope.cancel()
        else:
            self._read_scope.deadline = self._read_deadline

    def hang_up(self) -> None:
        self._is_over = True
        self._read_scope.cancel()

    # Reading

    async def _read_until_over(self) -> None:
        protocol = self._running_protocol
        while not self._is_over:
            with trio.CancelScope(deadline=self._read_deadline) as self._read_scope:
                await self._read(protocol)
            if self._is_woken:
                self._is_woken = False
            elif self._read_scope.cancelled_caught and not self._is_over:
                await protocol.time_out()

    async def _read(self, protocol: Http1Protocol) -> None:
        early, self._early = self._early, b""
        if early:
            await self._pass_on(early, protocol)
        while not self._is_over:
            if protocol.is_full:
                await trio.sleep_forever()  # until the answer has left
            data = await self._receive()
            if not data:
                self._has_left = True
                self.hang_up()
                return
            await self._pass_on(data, protocol)

    async def _receive(self) -> bytes:
        """Some bytes, or none when the client has left. Half a close counts as one: nobody would read on.

        Nobody else runs between reading and returning, as trio's own `recv` would allow: bytes that have
        arrived are either unread or known to the protocol, and `give_way` overlooks none.
        """
        self._is_receiving = True
        try:
            while True:
                await trio.lowlevel.wait_readable(self._fd)
                try:
                    return os.read(self._fd, _READ_BYTES)
                except BlockingIOError:
                    pass
        except OSError:
            return b""
        finally:
            self._is_receiving = False

    def _has_unread_bytes(self) -> bool:
        """The end of what a client sends is none."""
        return any(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))

    async def _pass_on(self, data: bytes, protocol: Http1Protocol) -> None:
        """Hand bytes to the protocol. While the app does not take them, the deadline stands still."""
        left_s = self._read_deadline - trio.current_time()
        self._read_scope.deadline = math.inf
        before = protocol.phase
        await protocol.receive(data)
        if self._is_woken:  # answered meanwhile; the deadline for the next request is set
            return
        self._read_deadline = self._next_deadline(protocol, before, trio.current_time() + left_s)
        self._read_scope.deadline = self._read_deadline

    def _next_deadline(self, protocol: Http1Protocol, before: Phase, unchanged: float) -> float:
        match protocol.phase:
            case Phase.HEAD if protocol.is_head_begun and not self._is_head_timed:
                self._is_head_timed = True
                return trio.current_time() + self._deadlines.head_s
            case Phase.BODY:
                progress_bytes = protocol.body_bytes - self._body_mark_bytes
                if before is Phase.BODY and progress_bytes < self._deadlines.body_progress_bytes:
                    return unchanged
                self._body_mark_bytes = protocol.body_bytes
                return trio.current_time() + self._deadlines.body_s
            case Phase.ANSWER:
                return math.inf
        return unchanged

    # Writing

    def _write_some(self, data: bytes | memoryview) -> int:
        """How many bytes the socket took without waiting."""
        if self._is_torn or self._fd < 0:
            self.hang_up()
            raise ClientGone
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            self.hang_up()
            raise ClientGone from None

    async def _write_slowly(self, data: memoryview) -> None:
        """Every 64 KiB has its own deadline. After a cut in the middle nothing may follow on the socket."""
        is_whole = False
        try:
            while data:
                with trio.move_on_after(self._deadlines.write_s) as scope:
                    data = await self._write_piece(data)
                if scope.cancelled_caught:
                    self.hang_up()
                    raise ClientGone
            is_whole = True
        finally:
            self._is_torn = self._is_torn or not is_whole

    async def _write_piece(self, data: memoryview) -> memoryview:
        left_bytes = max(0, len(data) - _WRITE_BYTES)
        while len(data) > left_bytes:
            await trio.lowlevel.wait_writable(self._fd)
            data = data[self._write_some(data) :]
        return data

    # Ending

    async def _take_leave(self) -> None:
        """Let a client that is still sending read its answer: closing at once would reset the connection."""
        if self._has_left or self._is_torn or not self._running_protocol.must_linger:
            return
        with trio.move_on_after(self._deadlines.linger_s):
            try:
                self._stream.socket.shutdown(socket.SHUT_WR)
            except OSError:
                return
            while await self._receive():
                pass

    def _close(self) -> None:
        self._fd = -1
        if self._is_torn or (self._protocol is not None and self._protocol.is_cut_unseen):
            try:
                self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            except OSError:
                pass  # the client has reset it already
        self._stream.socket.close()

    @property
    def _running_protocol(self) -> Http1Protocol:
        assert self._protocol is not None, "run() has not begun"
        return self._protocol

    def _address(self, side: str) -> tuple[str, int] | None:
        """(host, port), or None on a unix socket or when the client has left already."""
        try:
            name = self._stream.socket.getpeername() if side == "peer" else self._stream.socket.getsockname()
        except OSError:
            return None
        return (name[0], name[1]) if isinstance(name, tuple) else None

    def __repr__(self) -> str:
        state = "new" if self._protocol is None else self._protocol.phase.value
        return f"<Connection {state}>"
