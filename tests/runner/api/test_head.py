from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.api.head import HeadLimits, HeadReader, HeadRefused, RequestHead


def read(data: bytes, limits: HeadLimits | None = None) -> RequestHead:
    head = HeadReader(limits or HeadLimits()).feed(data)
    assert head is not None
    return head


def refused(data: bytes, limits: HeadLimits | None = None) -> int:
    with pytest.raises(HeadRefused) as caught:
        HeadReader(limits or HeadLimits()).feed(data)
    return caught.value.refusal.status


def test_a_head_is_returned_with_what_came_behind_it() -> None:
    reader = HeadReader(HeadLimits())

    head = reader.feed(b"POST /a%20b?c=%20 HTTP/1.1\r\nHost:  x \r\nContent-Length: 3\r\n\r\nabcGET")

    assert head is not None
    assert (head.method, head.target, head.path, head.version) == ("POST", "/a%20b?c=%20", "/a b", "1.1")
    assert head.headers == (("host", "x"), ("content-length", "3"))
    assert (head.content_length, head.is_chunked, head.has_body) == (3, False, True)
    assert reader.rest == b"abcGET"
    assert reader.raw.endswith(b"3\r\n\r\n")


def test_an_absolute_target_reaches_h11_as_a_path() -> None:
    reader = HeadReader(HeadLimits())

    head = reader.feed(b"GET http://localhost:1/x?y HTTP/1.1\r\nHost: localhost:1\r\n\r\n")

    assert head is not None
    assert (head.authority, head.target) == ("localhost:1", "/x?y")
    assert reader.raw == b"GET /x?y HTTP/1.1\r\nHost: localhost:1\r\n\r\n"


@pytest.mark.parametrize("target", [b"http://localhost", b"HTTP://localhost/"])
def test_an_absolute_target_without_a_path_is_the_root(target: bytes) -> None:
    assert read(b"GET %b HTTP/1.1\r\n\r\n" % target).target == "/"


AMBIGUOUS = [
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 6\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
    b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\n\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\ry\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\x00\r\n\r\n",
    b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\r\nHost: x\r\n\r\n",
    b"GET x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET ftp://localhost/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://localhost?x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01",
]


def test_N07_what_two_readers_could_read_differently_is_refused() -> None:
    assert {head: refused(head) for head in AMBIGUOUS} == dict.fromkeys(AMBIGUOUS, 400)


@pytest.mark.parametrize("version", [b"0.9", b"1.2", b"2.0"])
def test_other_versions_of_http_are_refused(version: bytes) -> None:
    assert refused(b"PRI / HTTP/%b\r\n\r\n" % version) == 505


def head_of_size(size_bytes: int) -> bytes:
    frame = b"GET / HTTP/1.1\r\nHost: x\r\nA: %b\r\n\r\n"
    return frame % (b"a" * (size_bytes - len(frame) + 2))


@pytest.mark.parametrize("size_bytes", [65535, 65536])
def test_N09_headers_up_to_64_KiB_are_read(size_bytes: int) -> None:
    assert len(head_of_size(size_bytes)) == size_bytes
    assert read(head_of_size(size_bytes) + b"x" * 1000).method == "GET"


def test_N09_headers_above_64_KiB_are_refused_complete_or_not() -> None:
    assert refused(head_of_size(65537)) == 431
    assert refused(head_of_size(70000)[:65537]) == 431


@pytest.mark.parametrize("n_lines", [99, 100])
def test_N09_up_to_100_header_lines_are_read(n_lines: int) -> None:
    assert len(read(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * n_lines + b"\r\n").headers) == n_lines


def test_N09_more_than_100_header_lines_are_refused() -> None:
    assert refused(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n") == 431
    assert refused(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 102) == 431


def test_a_short_head_with_a_large_body_behind_it_is_no_large_head() -> None:
    assert read(b"POST / HTTP/1.1\r\nContent-Length: 90000\r\n\r\n" + b"\n" * 90000).content_length == 90000


_token = st.text("abcXYZ-_!~09", min_size=1, max_size=8).map(str.encode)
_value = st.lists(
    st.sampled_from([b"a", b"B", b" ", b"\t", b",", b":", b"\xff", b"chunked", b"5"]), max_size=6
).map(b"".join)
_name = st.one_of(_token, st.sampled_from([b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection"]))
_line = st.builds(
    lambda name, gap, value: name + b":" + gap + value, _name, st.sampled_from([b"", b" ", b"\t "]), _value
)
_heads = st.builds(
    lambda method, target, version, lines: b"\r\n".join(
        [b"%b %b HTTP/%b" % (method, target, version), *lines, b"", b""]
    ),
    st.sampled_from([b"GET", b"POST", b"x"]),
    st.sampled_from([b"/", b"/a?b=%20", b"//x", b"*", b"http://h/"]),
    st.sampled_from([b"1.0", b"1.1"]),
    st.lists(_line, max_size=5),
)


@settings(deadline=None)
@given(head=_heads)
def test_what_is_accepted_here_h11_reads_the_same_way(head: bytes) -> None:
    reader = HeadReader(HeadLimits())
    try:
        ours = reader.feed(head)
    except HeadRefused:
        return
    assert ours is not None
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(reader.raw)
    try:
        theirs = connection.next_event()
    except h11.RemoteProtocolError:
        return  # Host, which admission judges with a status of its own
    assert isinstance(theirs, h11.Request)
    assert (ours.method, ours.target, ours.version) == (
        theirs.method.decode(),
        theirs.target.decode(),
        theirs.http_version.decode(),
    )
    lengths = {value for name, value in theirs.headers if name == b"content-length"}
    assert lengths == ({str(ours.content_length).encode()} if ours.content_length is not None else lengths)
    others = [pair for pair in theirs.headers if pair[0] not in (b"content-length", b"transfer-encoding")]
    assert others == [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in ours.headers
        if name not in ("content-length", "transfer-encoding")
    ]
    body = connection.next_event()
    assert (body is h11.NEED_DATA) == ours.has_body


@settings(deadline=None)
@given(
    head=st.one_of(
        _heads,
        st.lists(st.sampled_from([b"GET / HTTP/1.1", b"\r", b"\n", b"A: b", b" ", b"x"])).map(b"".join),
    ),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_N07_the_verdict_does_not_depend_on_how_the_bytes_are_split(head: bytes, cuts: list[int]) -> None:
    def verdict(pieces: list[bytes]) -> object:
        reader = HeadReader(HeadLimits())
        for piece in pieces:
            try:
                found = reader.feed(piece)
            except HeadRefused:
                return "refused"
            if found is not None:
                return found
        return "incomplete"

    edges = sorted({0, len(head), *(cut for cut in cuts if cut < len(head))})
    pieces = [head[start:end] for start, end in itertools.pairwise(edges)]
    assert verdict(pieces) == verdict([head] if head else [])
