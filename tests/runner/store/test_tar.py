"""Tar archives from strangers: what is read, in whichever pieces it comes, and all that is refused (S14)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InvalidArchive
from runner.store.tar import (
    BLOCK_BYTES,
    END,
    EXTENDED_BYTES_MAX,
    MEMBERS_MAX,
    Content,
    Member,
    MemberEnd,
    TarReader,
    header_of,
    padding_of,
)

LIMIT = 1 << 40


def read(archive: bytes, *, pieces: Iterable[int] = (), limit: int = LIMIT) -> list[tuple[str, bytes | None]]:
    """Names with contents, None for directories."""
    reader = TarReader(limit)
    found: list[tuple[str, bytes | None]] = []
    at = 0
    for size in (*pieces, len(archive)):
        for event in reader.feed(archive[at : at + size]):
            match event:
                case Member(name, is_directory, _):
                    found.append((name, None if is_directory else b""))
                case Content(data):
                    name, content = found[-1]
                    found[-1] = (name, (content or b"") + bytes(data))
                case MemberEnd():
                    pass
        at += size
    reader.end()
    return found


def member(name: str, content: bytes = b"", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in changes.items():
        setattr(info, field, value)
    return info, content


def made(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """By Python's own writer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def ours(*files: tuple[str, bytes]) -> bytes:
    parts = [header_of(name, len(content)) + content + padding_of(len(content)) for name, content in files]
    return b"".join(parts) + END


FILES = (
    member("a", b"x" * 1000),
    member("blobs", type=tarfile.DIRTYPE),
    member("blobs/b", b""),
    member("c", b"y" * 512),
)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["short", "d/" + "n" * 120, "d" * 90 + "/" + "e" * 90])
def test_every_usual_form_of_the_format_is_read(format: int, name: str) -> None:
    if format == tarfile.USTAR_FORMAT and name.startswith("d/"):
        name = "n" * 90
    archive = made(member(name, b"content"), member(name + "2", b"other"), format=format)
    assert read(archive) == [(name, b"content"), (name + "2", b"other")]


@given(st.lists(st.integers(1, 700), max_size=40))
def test_pieces_of_any_size_give_the_same(pieces: list[int]) -> None:
    assert read(made(*FILES), pieces=pieces) == [
        ("a", b"x" * 1000), ("blobs", None), ("blobs/b", b""), ("c", b"y" * 512),
    ]  # fmt: skip


@given(st.dictionaries(st.text("abc-_0", min_size=1, max_size=60), st.binary(max_size=2000), max_size=5))
def test_what_we_write_is_read_by_us_and_by_others(files: dict[str, bytes]) -> None:
    archive = ours(*files.items())
    assert read(archive) == list(files.items())
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        assert {info.name: info.size for info in found} == {name: len(c) for name, c in files.items()}


def test_headers_do_not_vary_and_say_nothing_of_whoever_wrote_them() -> None:
    info = tarfile.TarInfo.frombuf(header_of("a", 5), "utf-8", "strict")
    assert (info.uid, info.gid, info.uname, info.gname, info.mtime, info.mode) == (0, 0, "", "", 0, 0o644)
    assert header_of("a", 5) == header_of("a", 5)
    assert tarfile.TarInfo.frombuf(header_of("d/", 0, is_directory=True), "utf-8", "strict").isdir()


@pytest.mark.parametrize("size", [8 << 30, 1 << 40])
def test_sizes_beyond_8_GiB_are_written_and_read(size: int) -> None:
    assert tarfile.TarInfo.frombuf(header_of("a", size), "utf-8", "strict").size == size
    (begun,) = TarReader(2 << 40).feed(header_of("a", size))
    assert begun == Member("a", False, size)
    big = member("a")[0]
    big.size = size
    (begun,) = TarReader(2 << 40).feed(big.tobuf(format=tarfile.PAX_FORMAT))
    assert begun == Member("a", False, size)


def test_names_begin_in_the_directory_that_is_archived() -> None:
    archive = made(
        member("./", type=tarfile.DIRTYPE), member("./a", b"x"), member("b/", type=tarfile.DIRTYPE)
    )
    assert read(archive) == [("", None), ("a", b"x"), ("b", None)]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "neither file nor directory"),
        (tarfile.CONTTYPE, "neither file nor directory"),
    ],
)
def test_S14_only_files_and_directories_are_taken(kind: bytes, told: str) -> None:
    info = member("a", type=kind, linkname="/etc/passwd" if kind in b"12" else "")[0]
    with pytest.raises(InvalidArchive, match=told):
        read(info.tobuf(format=tarfile.GNU_FORMAT) + END)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../a", "a/../b", "a/..", "..", "a//b", "a/./b", "a\\b", "C:a", "a\nb", "nul", "a\x7f",
        "././a", "a ", ".", "x" * 300, "\u202ea",
    ],
)  # fmt: skip
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_S14_absolute_and_climbing_names_are_refused_in_whichever_header_they_stand(
    name: str, format: int
) -> None:
    info = member(name, b"x")[0]
    with pytest.raises(InvalidArchive, match="names a file"):
        read(info.tobuf(format=format) + b"x".ljust(BLOCK_BYTES, b"\0") + END)


def test_S14_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidArchive, match="UTF-8"):
        read(member("a\udcff")[0].tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + END)


@pytest.mark.parametrize(
    ("mode", "is_good"), [(0o4755, False), (0o2755, False), (0o1777, True), (0o777, True)]
)
def test_S14_set_id_bits_are_refused(mode: int, is_good: bool) -> None:
    archive = made(member("a", b"x", mode=mode))
    if is_good:
        assert read(archive) == [("a", b"x")]
    else:
        with pytest.raises(InvalidArchive, match="set-id"):
            read(archive)


@pytest.mark.parametrize(("count", "is_good"), [(MEMBERS_MAX, True), (MEMBERS_MAX + 1, False)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_S14_an_archive_has_at_most_1000_members(count: int, is_good: bool, kind: bytes) -> None:
    archive = b"".join(header_of(f"{n}", 0, is_directory=kind == b"5") for n in range(count)) + END
    if is_good:
        assert len(read(archive)) == count
    else:
        with pytest.raises(InvalidArchive, match="more than 1000"):
            read(archive)


@pytest.mark.parametrize(("limit", "is_good"), [(3000, True), (3001, True), (2999, False)])
def test_S14_the_sizes_of_all_files_together_are_limited(limit: int, is_good: bool) -> None:
    archive = ours(("a", b"x" * 1000), ("b", b"y" * 2000))
    if is_good:
        assert len(read(archive, limit=limit)) == 2
    else:
        with pytest.raises(InvalidArchive, match="more than 2999 bytes"):
            read(archive, limit=limit)


@pytest.mark.parametrize(
    ("start", "method"),
    [(b"\x1f\x8b\x08", "gzip"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")],
)
def test_S14_nothing_is_unpacked_that_could_be_larger_than_it_was_sent(start: bytes, method: str) -> None:
    for archive in (start, start + bytes(600)):
        with pytest.raises(InvalidArchive, match=f"compressed with {method}"):
            read(archive)


def extended(content: bytes, kind: bytes = b"x") -> bytes:
    info = member("x", type=kind)[0]
    info.size = len(content)
    return info.tobuf(format=tarfile.USTAR_FORMAT) + content + padding_of(len(content))


@pytest.mark.parametrize(
    "content",
    [
        b"18 linkpath=/etc/x\n", b"20 GNU.sparse.major=1\n"[:0] + b"22 GNU.sparse.major=1\n", b"nonsense",
        b"9 path=a\n"[:-1], b"99 path=a\n", b"0 path=a\n", b"10 size=-1\n", b"9 size=x\n", b"7 path\n",
        b"27 size=9999999999999999999\n",
    ],
)  # fmt: skip
def test_S14_extended_headers_make_no_links_and_are_read_strictly(content: bytes) -> None:
    with pytest.raises(InvalidArchive, match="extended header"):
        read(extended(content) + ours(("a", b"x")))


@pytest.mark.parametrize(("size", "is_good"), [(EXTENDED_BYTES_MAX, True), (EXTENDED_BYTES_MAX + 1, False)])
def test_S14_extended_headers_are_bounded_before_they_are_held(size: int, is_good: bool) -> None:
    key = f"{size} comment=".encode()
    content = key + b"x" * (size - len(key) - 1) + b"\n"
    if is_good:
        assert read(extended(content) + ours(("a", b"x"))) == [("a", b"x")]
    else:
        with pytest.raises(InvalidArchive, match="extended header has"):
            read(extended(content) + ours(("a", b"x")))


@pytest.mark.parametrize(("kind", "most"), [(b"g", 8), (b"x", 2)])
def test_S14_extended_headers_without_end_are_refused(kind: bytes, most: int) -> None:
    one = extended(b"12 comment=\n", kind)
    assert read(one * most + ours(("a", b"x"))) == [("a", b"x")]
    with pytest.raises(InvalidArchive, match="more extended headers"):
        read(one * (most + 1) + ours(("a", b"x")))


@pytest.mark.parametrize(
    ("archive", "told"),
    [
        (b"", "cut off"),
        (ours(("a", b"x"))[:-1024], "cut off"),
        (ours(("a", b"x" * 600))[:700], "cut off"),
        (b"x" * 600, "no tar archive"),
        (ours(("a", b"x")) + b"x" * 512, "follows the end"),
        (extended(b"9 path=b\n") + END, "behind an extended header"),
        (b"b" + ours(("a", b"x"))[1:], "damaged"),
        (header_of("d", 5, is_directory=True) + END, "directory 'd/' has content"),
        (END * 1025, "does not end"),
    ],
)
def test_damage_is_told_as_such(archive: bytes, told: str) -> None:
    with pytest.raises(InvalidArchive, match=told):
        read(archive)


def with_size(field: bytes) -> bytes:
    """A header with this size field, and a checksum that fits."""
    header = bytearray(header_of("a", 5))
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        (b"\xff" * 12, "out of range"),
        (b"\x80" + b"\0" * 2 + b"\xff" * 9, "out of range"),
        (b"12345678901x", "is none"),
        (b"-0000000001\0", "is none"),
        (b"0x000000001\0", "is none"),
    ],
)
def test_S14_a_size_is_a_number_from_0_on(field: bytes, told: str) -> None:
    with pytest.raises(InvalidArchive, match=told):
        read(with_size(field) + END)


def test_a_size_may_be_empty_or_padded_with_blanks() -> None:
    assert read(with_size(b"\0" * 12) + END) == [("a", b"")]
    assert read(with_size(b"          1 ") + b"x".ljust(BLOCK_BYTES, b"\0") + END) == [("a", b"x")]


@given(st.binary(max_size=1500), st.integers(0, 1023), st.integers(0, 255))
def test_any_bytes_are_an_archive_or_refused(tail: bytes, at: int, value: int) -> None:
    good = bytearray(ours(("a", b"x")) + tail)
    good[at] = value
    for archive in (bytes(good), tail):
        try:
            read(archive)
        except InvalidArchive:
            continue
