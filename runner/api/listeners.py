"""The sockets on which the daemon listens, and why it refuses to.

Owns binding: loopback only (N01), a unix socket that only its owner reaches, no take-over of a socket that
somebody still answers on (L10). Every failure is `StartRefused` with what to change. May import errors.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio

from runner.errors import StartRefused

_PATH_BYTES_MAX = 107  # sun_path of Linux, less its final zero
_LOCK_TRIES = 40
_LOCK_PAUSE_S = 0.05


@attrs.define
class Listener:
    """One listening socket, not blocking. `hosts`: the Host headers that name it, None on a unix socket."""

    socket: socket.socket
    address: str
    hosts: frozenset[str] | None
    _path: Path | None = None
    _inode: tuple[int, int] | None = None

    def close(self) -> None:
        """Stop listening, and remove the socket file if it is still ours."""
        self.socket.close()
        path, self._path = self._path, None
        if path is not None and _inode_of(path) == self._inode:
            path.unlink(missing_ok=True)


def listen_tcp(host: str, port: int, *, allowed_hosts: tuple[str, ...] = (), backlog: int = 1024) -> Listener:
    """Listen on a loopback address; port 0 takes a free one. Raises `StartRefused`."""
    address = _loopback_address(host)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((str(address), port))
        listening.listen(backlog)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise StartRefused(_why_not_bound(f"{_url_host(address)}:{port}", error)) from error
    own_port = listening.getsockname()[1]
    return Listener(
        listening,
        f"http://{_url_host(address)}:{own_port}",
        _host_headers(("localhost", "127.0.0.1", "[::1]", _url_host(address), *allowed_hosts), own_port),
    )


async def listen_unix(path: Path, *, backlog: int = 1024) -> Listener:
    """Listen on a socket file, 0600 in a directory 0700; a stale file is replaced. Raises `StartRefused`."""
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise StartRefused(
            f"the path of the socket is longer than {_PATH_BYTES_MAX} bytes; choose a shorter one"
        )
    _prepare_directory(path.parent)
    for _ in range(_LOCK_TRIES):
        try:
            with _locked(path.parent):
                return _bind_unix(path, backlog)
        except BlockingIOError:
            await trio.sleep(_LOCK_PAUSE_S)
    raise StartRefused(
        "another program holds the directory of the socket locked; stop it or choose another path"
    )


def _loopback_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError:
        raise StartRefused(
            f"{host[:80]!r} is not an address to listen on; write one like 127.0.0.1"
        ) from None
    if not address.is_loopback:
        raise StartRefused(
            f"refusing to listen on {address}: other machines could use this server without an API key, and "
            f"API keys do not exist yet; listen on 127.0.0.1 and forward the port (for example with ssh -L)"
        )
    return address


def _url_host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def _host_headers(names: tuple[str, ...], port: int) -> frozenset[str]:
    return frozenset(name.lower() for name in names) | {f"{name.lower()}:{port}" for name in names}


def _why_not_bound(where: str, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"{where} is in use by another program; stop it or choose another port with --port"
        case errno.EACCES:
            return f"listening on {where} is not permitted; choose a port above 1023"
    return f"cannot listen on {where}: {error.strerror}"


def _prepare_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise StartRefused(f"cannot create the directory of the socket: {error.strerror}") from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise StartRefused(
            f"other users can enter the directory of the socket, {directory}; choose one of your own that is "
            f"closed to others (chmod 700)"
        )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two daemons that start together must not both find the socket stale. Raises BlockingIOError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _bind_unix(path: Path, backlog: int) -> Listener:
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listening.fileno(), 0o600)  # Linux gives the file this mode; umask would touch every thread
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(backlog)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise StartRefused(f"cannot listen on {path}: {error.strerror}") from error
    return Listener(listening, f"unix:{path}", None, path, _inode_of(path))


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StartRefused(f"{path} exists and is not a socket; choose another path with --socket")
    if _somebody_listens(path):
        raise StartRefused(f"another daemon listens on {path}; stop it or choose another path with --socket")
    path.unlink(missing_ok=True)


def _somebody_listens(path: Path) -> bool:
    """Only a refused connection proves that nobody does; a full backlog (EAGAIN) proves the opposite."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True


def _inode_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
