"""What every answer carries: its request id, `nosniff`, and leave for the web origins that are listed.

Owns request ids. An id from outside is kept only when it is harmless in a header and in a log. It is a label
for people: two clients may send the same one, so nothing may be looked up by it. May import Quart.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import cast

from quart import Quart, g, request
from quart.wrappers import Response
from quart_trio.wrappers import TrioResponse

from runner.api.streaming import EXCHANGE, Exchange

REQUEST_ID_HEADER = "x-request-id"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ALLOWED_METHODS = "GET, POST, DELETE"
_ALLOWED_HEADERS = "Authorization, Content-Type, X-Request-Id"


def choose_request_id(offered: Sequence[str]) -> str:
    """The one that the client sent, when it sent exactly one and it is harmless; else a new one."""
    if len(offered) == 1 and _REQUEST_ID.fullmatch(offered[0]):
        return offered[0]
    return f"req_{secrets.token_hex(12)}"


def request_id() -> str:
    """The id of the request that is being answered."""
    return cast(str, g.request_id)


def install_middleware(app: Quart, allowed_origins: frozenset[str]) -> None:
    """Admission has refused every origin that is not listed (N03); here the listed ones get their leave."""

    @app.before_request
    async def begin() -> TrioResponse | None:
        exchange = cast(Exchange | None, request.scope.get("state", {}).get(EXCHANGE))
        g.request_id = (
            choose_request_id(request.headers.getlist(REQUEST_ID_HEADER))
            if exchange is None
            else exchange.request_id
        )
        if request.method == "OPTIONS" and request.headers.get("Origin") in allowed_origins:
            return TrioResponse(status=204)
        return None

    @app.after_request
    async def label(response: Response) -> Response:
        response.headers[REQUEST_ID_HEADER] = request_id()
        response.headers["X-Content-Type-Options"] = "nosniff"
        if allowed_origins:
            _grant(response, request.headers.get("Origin", ""))
        return response

    def _grant(response: Response, origin: str) -> None:
        response.headers.add("Vary", "Origin")
        if origin not in allowed_origins:
            return
        response.headers["Access-Control-Allow-Origin"] = origin
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Methods"] = _ALLOWED_METHODS
            response.headers["Access-Control-Allow-Headers"] = _ALLOWED_HEADERS
