"""Request heads: bytes in pieces in, a checked head out; no I/O.

Owns the strict reading of the request line and headers that stands before h11, which is lenient where
smuggling lives: it takes bare line feeds, folded headers, and a length beside a transfer coding. What passes
here h11 reads the same way; the tests hold the two against each other. Imports refusals only.
Where a head goes next: `runner.api.admission`, then `runner.api.protocol`.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

import attrs

from runner.api.errors import Refusal

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])" % _TOKEN)
_HEADER = re.compile(
    rb"(%b):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*" % _TOKEN
)
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(r"[0-9]{1,19}")
_END = b"\r\n\r\n"


class HeadRefused(Exception):
    """These bytes are no request that may be read; what follows them is not a request either."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@attrs.frozen(kw_only=True)
class HeadLimits:
    """`max_bytes` counts the request line and the empty line too, `max_lines` the headers only."""

    max_bytes: int = 64 * 1024
    max_lines: int = 100


@attrs.frozen(kw_only=True)
class RequestHead:
    """What a client asks before its body. Names in lower case, in order, text as Latin-1.

    `authority` is set when the target was in absolute form; `target` is always a path with its query.
    `content_length` is None without one, also when the body is chunked.
    """

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    authority: str | None = None
    content_length: int | None = None
    is_chunked: bool = False

    def values(self, name: str) -> tuple[str, ...]:
        """The value of every line of this header; `name` in lower case."""
        return tuple(value for key, value in self.headers if key == name)

    @property
    def path(self) -> str:
        """The path as routing sees it: without query, percent-decoded once."""
        return unquote(self.target.partition("?")[0])

    @property
    def has_body(self) -> bool:
        return self.is_chunked or bool(self.content_length)


class HeadReader:
    """Collects one head. After `feed` returned it, `raw` is the head for h11 and `rest` what came behind."""

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self.raw = b""
        self.rest = b""

    @property
    def is_empty(self) -> bool:
        """Nothing of this head has arrived."""
        return not self._buffer

    def feed(self, data: bytes) -> RequestHead | None:
        """The head once it is complete, or `HeadRefused`; then no more is fed. `data` is not empty."""
        searched = max(0, len(self._buffer) - len(_END) + 1)
        self._buffer += data
        end = self._buffer.find(_END, searched)
        self._check(searched, len(self._buffer) if end < 0 else end + len(_END))
        if end < 0:
            return None
        head = bytes(self._buffer[: end + len(_END)])
        self.rest = bytes(self._buffer[len(head) :])
        parsed = _parse(head[: -len(_END)].split(b"\r\n"))
        self.raw = head if parsed.authority is None else _in_origin_form(head, parsed)
        return parsed

    def _check(self, start: int, end: int) -> None:
        """What can be said of a head that is not complete, so that nobody waits for its end in vain."""
        if self._buffer[0] < 0x21:  # also the first byte of a TLS handshake
            raise HeadRefused(_bad_request("the request does not begin with a method"))
        if end > self._limits.max_bytes:
            raise HeadRefused(_too_large(f"the headers are larger than {self._limits.max_bytes} bytes"))
        if _BARE_LINE_FEED.search(self._buffer, start, end):
            raise HeadRefused(_bad_request("a line ends without a carriage return"))
        # The request line and the empty line are no headers. An incomplete head lacks its empty line.
        if self._buffer.count(b"\n", 0, end) > self._limits.max_lines + 2:
            raise HeadRefused(_too_large(f"there are more than {self._limits.max_lines} header lines"))


def _parse(lines: list[bytes]) -> RequestHead:
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        raise HeadRefused(_bad_request("the request line is malformed"))
    method, target, version = (part.decode("latin-1") for part in line.groups())
    if version not in ("1.0", "1.1"):
        raise HeadRefused(_version_refused())
    headers = tuple(_parse_header(header) for header in lines[1:])
    authority, target = _split_target(method, target)
    content_length, is_chunked = _framing(version, headers)
    return RequestHead(
        method=method,
        target=target,
        version=version,
        headers=headers,
        authority=authority,
        content_length=content_length,
        is_chunked=is_chunked,
    )


def _parse_header(line: bytes) -> tuple[str, str]:
    """(name, value) of a line. Neither a folded line nor a name followed by a space is a token."""
    header = _HEADER.fullmatch(line)
    if header is None:
        raise HeadRefused(_bad_request("a header line is malformed"))
    return header[1].decode("ascii").lower(), header[2].decode("latin-1")


def _split_target(method: str, target: str) -> tuple[str | None, str]:
    """(authority, path with query), from the forms of RFC 9112 section 3.2: origin, absolute, authority."""
    if target.startswith("/"):
        return None, target
    if target[:7].lower() == "http://":
        authority, slash, rest = target[7:].partition("/")
        if "?" not in authority:
            return authority, slash + rest if slash else "/"
    if method == "CONNECT":
        return target, "/"
    raise HeadRefused(_bad_request("the request target is not a path"))


def _framing(version: str, headers: tuple[tuple[str, str], ...]) -> tuple[int | None, bool]:
    """(length, chunked) of the body; refuses everything that two readers could read differently."""
    codings = [value.lower() for name, value in headers if name == "transfer-encoding"]
    lengths = [
        part.strip() for name, value in headers if name == "content-length" for part in value.split(",")
    ]
    if codings and lengths:
        raise HeadRefused(_bad_request("Content-Length and Transfer-Encoding exclude each other"))
    if codings:
        if version == "1.0" or codings != ["chunked"]:
            raise HeadRefused(_bad_request("the only transfer coding is chunked, of HTTP/1.1"))
        return None, True
    if not lengths:
        return None, False
    if len(set(lengths)) != 1 or not _LENGTH.fullmatch(lengths[0]):
        raise HeadRefused(_bad_request("Content-Length is not one number"))
    return int(lengths[0]), False


def _in_origin_form(head: bytes, parsed: RequestHead) -> bytes:
    """The same head with a path for a target, so that nothing behind this module meets the other form."""
    line = f"{parsed.method} {parsed.target} HTTP/{parsed.version}".encode("latin-1")
    return line + head[head.index(b"\r\n") :]


def _bad_request(message: str) -> Refusal:
    return Refusal(status=400, code="bad_request", message=message)


def _too_large(message: str) -> Refusal:
    return Refusal(status=431, code="headers_too_large", message=message)


def _version_refused() -> Refusal:
    return Refusal(
        status=505, code="http_version_not_supported", message="only HTTP/1.1 and HTTP/1.0 are served"
    )
