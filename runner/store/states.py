"""Saved states of engines as files of this daemon's own: written, authenticated, read back part by part.

<root>/key             32 random bytes; what is not authenticated with them is removed
<root>/<name>.state    one state
<root>/<name>.part     one that is being written

    file = magic, length of the head (4 bytes, big-endian), head (JSON), tokens (4 bytes each, native), MAC,
           (part, MAC)*                     every part but the last is `PART_BYTES` long

A MAC is HMAC-SHA256 of a nonce of the file, the place in the file, and the bytes before it, so that parts can
be handed on one by one, each once it is known to be ours. A torn or altered file is removed wherever that is
noticed; nothing is synced to disk, since losing a state costs time only. Files are 0600, the directory 0700
(K03).

Calls wait for the disk: call from a thread, while this process owns the store. Imports the standard library,
attrs and orjson. Read on in `actors/saved_states.py`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs
import orjson

PART_BYTES: Final = 512 * 1024
STATE_BYTES_MAX: Final = 256 * 1024 * 1024
STATE_TOKENS_MAX: Final = 200_000
HEAD_BYTES_MAX: Final = 64 * 1024
FILES_MAX: Final = 512
TOKENS_MAX: Final = 4_000_000
"""Of all states together: they are held in memory, at four bytes each."""
_MAGIC: Final = b"rnstate1"
_KEY_BYTES: Final = 32
_MAC_BYTES: Final = 32
_NONCE_BYTES: Final = 16
_TEXT_MAX: Final = 256
_WEIGHTS_MAX: Final = 512
_STATE, _PART = ".state", ".part"
_HEAD_FIELDS: Final = {"nonce", "key", "owner", "n_tokens", "state_bytes"}


class StateRefused(Exception):
    """A file that is not a state that this daemon wrote, or not whole: a reason for the log."""


@attrs.frozen(kw_only=True)
class StateKey:
    """What must agree before a state may be put back: another engine or option lays cells out otherwise.

    `weights` are digests of the parts of the weights, in order; a package of the same weights shares them.
    """

    weights: tuple[str, ...]
    engine: str
    architecture: str
    key_type: str
    value_type: str
    flash_attention: str


@attrs.frozen(kw_only=True, eq=False)
class StateFile:
    """One state on disk. `tokens` are packed, four bytes each; `used_s` is Unix time."""

    path: Path
    key: StateKey
    owner: str
    tokens: bytes
    state_bytes: int
    file_bytes: int
    used_s: float
    nonce: bytes

    @property
    def n_tokens(self) -> int:
        return len(self.tokens) // 4


class StateWriter:
    """A state that is being written. `write` until all bytes are there, then `finish`; or `abandon`."""

    def __init__(self, file: BinaryIO, secret: bytes, state: StateFile) -> None:
        self._file = file
        self._secret = secret
        self._state = state
        self._buffer = bytearray()
        self._n_parts = 0
        self._left_bytes = state.state_bytes

    @property
    def is_complete(self) -> bool:
        return self._left_bytes == 0

    def write(self, data: bytes) -> None:
        """Raises StateRefused for more bytes than were announced, OSError of the disk."""
        if len(data) > self._left_bytes:
            raise StateRefused("more bytes than announced")
        self._left_bytes -= len(data)
        self._buffer += data
        while len(self._buffer) >= PART_BYTES or (self._buffer and self.is_complete):
            part = bytes(self._buffer[:PART_BYTES])
            del self._buffer[:PART_BYTES]
            self._file.write(part)
            self._file.write(_mac(self._secret, self._state.nonce, self._n_parts + 1, part))
            self._n_parts += 1

    def finish(self) -> StateFile:
        """Make it visible. Raises StateRefused when bytes are missing, OSError; nothing is left then."""
        if not self.is_complete:
            self.abandon()
            raise StateRefused("fewer bytes than announced")
        try:
            self._file.flush()
            os.utime(self._file.fileno(), (self._state.used_s, self._state.used_s))
            self._file.close()
            self._state.path.with_suffix(_PART).replace(self._state.path)
        except OSError:
            self.abandon()
            raise
        return self._state

    def abandon(self) -> None:
        """Leave nothing of it."""
        try:
            self._file.close()
        except OSError:
            pass  # what was buffered could not be written either
        self._state.path.with_suffix(_PART).unlink(missing_ok=True)


class StateFiles:
    """The directory `root`. `clock` is Unix time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._secret = b""

    def open(self) -> tuple[list[StateFile], list[str]]:
        """Make the directory if it is not there, and read the heads of what lies in it, oldest use first.

        Also gives the reasons for which files were removed: cut off, foreign, altered. Raises OSError.
        """
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root.chmod(0o700)
        notices: list[str] = []
        self._secret = self._read_key(notices)
        found: list[StateFile] = []
        for path in sorted(self._root.iterdir()):
            if path.suffix == _PART:
                path.unlink(missing_ok=True)
            elif path.suffix == _STATE:
                try:
                    found.append(self._read_head(path))
                except (StateRefused, OSError) as error:
                    notices.append(f"a saved state was removed: {error}")
                    path.unlink(missing_ok=True)
        found.sort(key=lambda state: state.used_s)
        return found, notices

    def begin(
        self, key: StateKey, owner: str, tokens: Sequence[int], state_bytes: int, now_s: float
    ) -> StateWriter:
        """Raises OSError, and StateRefused for what no head can hold; nothing is left then."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        packed = array("i", tokens).tobytes()
        head = orjson.dumps(
            {
                "nonce": nonce.hex(),
                "key": attrs.asdict(key),
                "owner": owner,
                "n_tokens": len(tokens),
                "state_bytes": state_bytes,
            }
        )
        if len(head) > HEAD_BYTES_MAX:
            raise StateRefused("a model of too many parts")
        beginning = _MAGIC + struct.pack(">I", len(head)) + head + packed
        path = self._root / f"{secrets.token_hex(16)}{_STATE}"
        state = StateFile(
            path=path,
            key=key,
            owner=owner,
            tokens=packed,
            state_bytes=state_bytes,
            file_bytes=_file_bytes(len(beginning), state_bytes),
            used_s=now_s,
            nonce=nonce,
        )
        descriptor = os.open(
            path.with_suffix(_PART),
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
        file = os.fdopen(descriptor, "wb")
        writer = StateWriter(file, self._secret, state)
        try:
            file.write(beginning + _mac(self._secret, nonce, 0, beginning))
        except OSError:
            writer.abandon()
            raise
        return writer

    def parts(self, state: StateFile) -> Iterator[bytes]:
        """The bytes of a state, each part once it is known to be ours.

        Raises StateRefused at the first that is not, also when the head is not that of `state`; OSError.
        """
        with _open(state.path) as file:
            if self._head_of(file).nonce != state.nonce:
                raise StateRefused("another file has its name")
            left_bytes, index = state.state_bytes, 0
            while left_bytes:
                index += 1
                part = file.read(min(PART_BYTES, left_bytes))
                mac = file.read(_MAC_BYTES)
                if not hmac.compare_digest(mac, _mac(self._secret, state.nonce, index, part)):
                    raise StateRefused("its content is not what was written")
                left_bytes -= len(part)
                yield part

    def note_use(self, state: StateFile, now_s: float) -> StateFile:
        """Also for the next start, as the time of the file. Raises OSError."""
        os.utime(state.path, (now_s, now_s))
        return attrs.evolve(state, used_s=now_s)

    def remove(self, states: Iterable[StateFile]) -> None:
        """Raises OSError."""
        for state in states:
            state.path.unlink(missing_ok=True)

    # within

    def _read_key(self, notices: list[str]) -> bytes:
        """A new one where there is none, or where others could have read or written it."""
        path = self._root / "key"
        try:
            with _open(path) as file:
                key = file.read(_KEY_BYTES + 1)
            if len(key) == _KEY_BYTES:
                return key
            notices.append("the key of saved states was damaged; they are dropped")
        except FileNotFoundError:
            pass
        except StateRefused as error:
            notices.append(f"the key of saved states was replaced, and they are dropped: {error}")
        fresh = secrets.token_bytes(_KEY_BYTES)
        new = self._root / "key.part"
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(fresh)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
        return fresh

    def _read_head(self, path: Path) -> StateFile:
        with _open(path) as file:
            return self._head_of(file, path)

    def _head_of(self, file: BinaryIO, path: Path = Path()) -> StateFile:
        """Read within bounds, then authenticated; nothing is taken of it before. Raises StateRefused,
        OSError."""
        preface = file.read(len(_MAGIC) + 4)
        if len(preface) < len(_MAGIC) + 4 or not preface.startswith(_MAGIC):
            raise StateRefused("no state of ours")
        (head_bytes,) = struct.unpack(">I", preface[len(_MAGIC) :])
        if not 0 < head_bytes <= HEAD_BYTES_MAX:
            raise StateRefused("a head of impossible size")
        head = file.read(head_bytes)
        fields = _fields(head)
        tokens = file.read(4 * fields["n_tokens"])
        nonce = bytes.fromhex(fields["nonce"])
        beginning = preface + head + tokens
        mac = file.read(_MAC_BYTES)
        if not hmac.compare_digest(mac, _mac(self._secret, nonce, 0, beginning)):
            raise StateRefused("not authenticated with our key")
        status = os.fstat(file.fileno())
        if status.st_size != _file_bytes(len(beginning), fields["state_bytes"]):
            raise StateRefused("not whole")
        key = fields["key"]
        return StateFile(
            path=path,
            key=StateKey(**{**key, "weights": tuple(key["weights"])}),
            owner=fields["owner"],
            tokens=tokens,
            state_bytes=fields["state_bytes"],
            file_bytes=status.st_size,
            used_s=status.st_mtime,
            nonce=nonce,
        )


def surplus(
    states: Sequence[StateFile], *, now_s: float, limit_bytes: int, age_max_s: float
) -> list[StateFile]:
    """Which of `states`, oldest use first, have to go: 1. what was not used for `age_max_s`; 2. the oldest,
    until files, their bytes and their tokens are within the limits. Pure."""
    gone = [state for state in states if not now_s - age_max_s <= state.used_s]
    kept = [state for state in states if now_s - age_max_s <= state.used_s]
    size_bytes = sum(state.file_bytes for state in kept)
    n_tokens = sum(state.n_tokens for state in kept)
    for index, state in enumerate(kept):
        if size_bytes <= limit_bytes and n_tokens <= TOKENS_MAX and len(kept) - index <= FILES_MAX:
            break
        size_bytes -= state.file_bytes
        n_tokens -= state.n_tokens
        gone.append(state)
    return gone


def file_bytes_of(n_tokens: int, state_bytes: int) -> int:
    """At most so much a state takes on disk."""
    return _file_bytes(len(_MAGIC) + 4 + HEAD_BYTES_MAX + 4 * n_tokens, state_bytes)


def _file_bytes(beginning_bytes: int, state_bytes: int) -> int:
    n_parts = -(-state_bytes // PART_BYTES)
    return beginning_bytes + _MAC_BYTES + state_bytes + n_parts * _MAC_BYTES


def _mac(secret: bytes, nonce: bytes, place: int, data: bytes) -> bytes:
    return hmac.digest(secret, nonce + place.to_bytes(8, "big") + data, hashlib.sha256)


def _open(path: Path) -> BinaryIO:
    """An ordinary file of this user that nobody else may touch. Raises StateRefused, OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateRefused(f"it cannot be opened ({error.strerror})") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(descriptor)
        raise StateRefused("others may read or write it")
    return os.fdopen(descriptor, "rb")


def _fields(head: bytes) -> dict[str, Any]:
    """Of exactly our fields, each of its type and within its bounds."""
    try:
        fields = orjson.loads(head)
    except orjson.JSONDecodeError:
        raise StateRefused("a head that is no JSON") from None
    if not isinstance(fields, dict) or fields.keys() != _HEAD_FIELDS or not _is_key(fields["key"]):
        raise StateRefused("a head of wrong shape")
    if not (_is_text(fields["owner"]) and _is_nonce(fields["nonce"])):
        raise StateRefused("a head of wrong shape")
    bounds = {"n_tokens": STATE_TOKENS_MAX, "state_bytes": STATE_BYTES_MAX}
    if not all(type(fields[name]) is int and 0 < fields[name] <= most for name, most in bounds.items()):
        raise StateRefused("sizes that no state has")
    return fields


def _is_key(value: Any) -> bool:
    names = {field.name for field in attrs.fields(StateKey)}
    if not isinstance(value, dict) or value.keys() != names:
        return False
    weights = value["weights"]
    if not isinstance(weights, list) or not 0 < len(weights) <= _WEIGHTS_MAX:
        return False
    return all(map(_is_text, weights)) and all(_is_text(value[name]) for name in names - {"weights"})


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _TEXT_MAX


def _is_nonce(value: Any) -> bool:
    if not isinstance(value, str) or len(value) != 2 * _NONCE_BYTES:
        return False
    return all(letter in "0123456789abcdef" for letter in value)
