"""The tar format as far as archives of models need it, from untrusted bytes and to reproducible ones.

Owns headers and limits (S14); no I/O and no files: bytes in, events out, and nothing is kept but one header.
Only regular files and directories pass. Links, devices, pipes, sparse files, absolute names, names with `..`
and set-id bits are refused, never repaired; compressed archives are not taken at all, so that nothing can be
larger unpacked than it was sent. Reads the POSIX format with its extended headers, and GNU's long names.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Final

import attrs

from runner.errors import InvalidArchive
from runner.oci.filename import relative_path_fault

BLOCK_BYTES: Final = 512
MEMBERS_MAX: Final = 1000  # S14
EXTENDED_BYTES_MAX: Final = 64 << 10
_GLOBAL_HEADERS_MAX: Final = 8
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_ZERO_BLOCKS_MAX: Final = 2048
"""Two end an archive; writers fill up to the size of a record, which is 10 KiB, or 1 MiB at most."""
_SET_ID_BITS: Final = 0o6000
_MAGICS: Final = (b"ustar\x0000", b"ustar  \x00")
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
_REFUSED: Final = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
    b"S": "a sparse file",
}  # fmt: skip


@attrs.frozen
class Member:
    """A file or directory begins. `name` is relative, of plain components joined by `/`; empty for the
    directory that holds all others."""

    name: str
    is_directory: bool
    size_bytes: int


@attrs.frozen
class Content:
    """The next bytes of the file that has begun."""

    data: memoryview


@attrs.frozen
class MemberEnd:
    """The file that had begun is complete."""


TarEvent = Member | Content | MemberEnd


@attrs.define
class _Extended:
    """What extended headers say of the member that follows."""

    path: str | None = None
    size_bytes: int | None = None
    count: int = 0


@attrs.define
class TarReader:
    """Reads an archive that arrives in pieces. `limit_bytes` bounds the files' sizes together.

    Raises InvalidArchive, after which the reader must not be used.
    """

    limit_bytes: int
    members_max: int = MEMBERS_MAX
    _block: bytearray = attrs.field(factory=bytearray, init=False)
    _left_bytes: int = attrs.field(default=0, init=False)
    _padding_bytes: int = attrs.field(default=0, init=False)
    _total_bytes: int = attrs.field(default=0, init=False)
    _n_members: int = attrs.field(default=0, init=False)
    _n_global: int = attrs.field(default=0, init=False)
    _in_member: bool = attrs.field(default=False, init=False)
    _gathering: bytes | None = attrs.field(default=None, init=False)
    _gathered: bytearray = attrs.field(factory=bytearray, init=False)
    _extended: _Extended = attrs.field(factory=_Extended, init=False)
    _zero_blocks: int = attrs.field(default=0, init=False)

    def feed(self, data: bytes | bytearray) -> Iterator[TarEvent]:
        """What these bytes complete. All events must be taken before the next bytes are fed."""
        view = memoryview(data)
        while view:
            if self._left_bytes:
                piece, view = view[: self._left_bytes], view[self._left_bytes :]
                self._left_bytes -= len(piece)
                if self._gathering is None:
                    yield Content(piece)
                else:
                    self._gathered += piece
                if not self._left_bytes:
                    yield from self._end_content()
            elif self._padding_bytes:
                skipped = min(self._padding_bytes, len(view))
                self._padding_bytes -= skipped
                view = view[skipped:]
            else:
                wanted = BLOCK_BYTES - len(self._block)
                self._block += view[:wanted]
                view = view[wanted:]
                if len(self._block) == BLOCK_BYTES:
                    block, self._block = bytes(self._block), bytearray()
                    yield from self._read_block(block)

    def end(self) -> None:
        """The bytes have ended. Raises InvalidArchive unless the archive has."""
        if not self._zero_blocks:
            _check_compressed(bytes(self._block))
            raise InvalidArchive("the archive is cut off")

    def _read_block(self, block: bytes) -> Iterator[TarEvent]:
        if block == _ZERO_BLOCK:
            if self._extended.count:
                raise InvalidArchive("the archive ends behind an extended header")
            self._zero_blocks += 1
            if self._zero_blocks > _ZERO_BLOCKS_MAX:
                raise InvalidArchive("the archive does not end")
            return
        if self._zero_blocks:
            raise InvalidArchive("something follows the end of the archive")
        if not self._n_members:
            _check_compressed(block)
        header = _Header.parse(block)
        if header.kind in b"xgL":
            self._begin_extended(header)
        else:
            yield from self._begin_member(header)

    def _begin_extended(self, header: _Header) -> None:
        if header.size_bytes > EXTENDED_BYTES_MAX or not header.size_bytes:
            raise InvalidArchive(f"an extended header has {header.size_bytes} bytes")
        if header.kind == b"g":
            self._n_global += 1
        else:
            self._extended.count += 1
        if self._n_global > _GLOBAL_HEADERS_MAX or self._extended.count > 2:
            raise InvalidArchive("the archive has more extended headers than it can need")
        self._gathering = header.kind
        self._begin_content(header.size_bytes)

    def _begin_member(self, header: _Header) -> Iterator[TarEvent]:
        extended, self._extended = self._extended, _Extended()
        name = header.name if extended.path is None else extended.path
        size_bytes = header.size_bytes if extended.size_bytes is None else extended.size_bytes
        self._n_members += 1
        if self._n_members > self.members_max:
            raise InvalidArchive(f"the archive has more than {self.members_max} members")
        if header.mode & _SET_ID_BITS:
            raise InvalidArchive(f"{name!r:.100} has a set-id bit")
        is_directory = header.kind == b"5"
        if not is_directory and header.kind not in (b"0", b"\x00"):
            kind = _REFUSED.get(header.kind, "neither file nor directory")
            raise InvalidArchive(
                f"{name!r:.100} is {kind}; archives of models hold files and directories only"
            )
        if is_directory and size_bytes:
            raise InvalidArchive(f"the directory {name!r:.100} has content")
        self._total_bytes += size_bytes
        if self._total_bytes > self.limit_bytes:
            raise InvalidArchive(f"the archive holds more than {self.limit_bytes} bytes")
        yield Member(_checked_name(name, is_directory), is_directory, size_bytes)
        self._in_member = True
        if size_bytes:
            self._begin_content(size_bytes)
        else:
            yield from self._end_content()

    def _begin_content(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes
        self._padding_bytes = -size_bytes % BLOCK_BYTES

    def _end_content(self) -> Iterator[TarEvent]:
        if self._gathering is None:
            self._in_member = False
            yield MemberEnd()
            return
        kind, content = self._gathering, bytes(self._gathered)
        self._gathering, self._gathered = None, bytearray()
        if kind == b"L":
            self._extended.path = _text(content.rstrip(b"\x00"))
        elif kind == b"x":
            _read_records(content, self._extended)


@attrs.frozen
class _Header:
    name: str
    mode: int
    size_bytes: int
    kind: bytes

    @classmethod
    def parse(cls, block: bytes) -> _Header:
        magic = block[257:265]
        if magic not in _MAGICS:
            raise InvalidArchive("this is no tar archive")
        stated = _number(block[148:156])
        if sum(block[:148]) + sum(block[156:]) + 8 * 0x20 != stated:
            raise InvalidArchive("a header of the archive is damaged")
        name, prefix = _until_nul(block[:100]), _until_nul(block[345:500])
        if prefix and magic == _MAGICS[0]:
            name = prefix + b"/" + name
        return cls(_text(name), _number(block[100:108]), _number(block[124:136]), block[156:157])


def _check_compressed(start: bytes) -> None:
    for magic, method in _COMPRESSED.items():
        if start.startswith(magic):
            raise InvalidArchive(f"the archive is compressed with {method}; unpack that first")


def _number(field: bytes) -> int:
    """Octal digits, or GNU's big-endian bytes behind a set bit."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        if field[0] & 0x40 or value >= 1 << 63:
            raise InvalidArchive("a number in a header of the archive is out of range")
        return value
    digits = field.strip(b" \x00")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise InvalidArchive("a number in a header of the archive is none")
    return int(digits, 8)


def _until_nul(field: bytes) -> bytes:
    return field.partition(b"\x00")[0]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidArchive(f"the name {raw!r:.100} is not UTF-8") from None


def _checked_name(name: str, is_directory: bool) -> str:
    plain = name.removeprefix("./")
    if is_directory:
        plain = plain.removesuffix("/")
        if plain in ("", "."):
            return ""
    fault = relative_path_fault(plain)
    if fault is not None:
        raise InvalidArchive(f"the archive names a file {name!r:.100}: {fault}")
    return plain


def _read_records(content: bytes, extended: _Extended) -> None:
    """`<length> <key>=<value>` and a newline, again and again; `length` counts all of it."""
    while content:
        length_text, blank, _ = content[:8].partition(b" ")
        length = int(length_text) if length_text.isdigit() else 0
        record = content[:length]
        key, equals, value = record[len(length_text) + 1 : -1].partition(b"=")
        if not blank or not equals or len(record) != length or not record.endswith(b"\n"):
            raise InvalidArchive("an extended header is damaged")
        content = content[length:]
        if key == b"path":
            extended.path = _text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise InvalidArchive("an extended header has a size that is none")
            extended.size_bytes = int(value)
        elif key == b"linkpath" or key.startswith(b"GNU.sparse"):
            raise InvalidArchive("an extended header makes a link or a sparse file")


# writing


def header_of(name: str, size_bytes: int, *, is_directory: bool = False) -> bytes:
    """One block, the same for the same arguments: of nobody, from 1970. `name` has at most 100 bytes."""
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.type = tarfile.DIRTYPE if is_directory else tarfile.REGTYPE
    info.mode = 0o755 if is_directory else 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT)  # whose sizes may exceed 8 GiB without another header


def padding_of(size_bytes: int) -> bytes:
    """What fills the last block of a file."""
    return bytes(-size_bytes % BLOCK_BYTES)


END: Final = 2 * _ZERO_BLOCK
