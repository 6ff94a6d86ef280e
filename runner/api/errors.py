"""The one table from error class to HTTP status, and the JSON envelope that every error leaves in.

Owns `Refusal`, the answer that is an error, whoever gives it: a route that raised, Quart's own routing, or
the serving layer before any route ran. No answer carries a stack, a path or text of an exception we do not
know. A dialect with a shape of its own registers handlers on its blueprint and takes the numbers from here.
May import errors and Quart. Where refusals come from before routing: `runner.api.admission`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from http import HTTPStatus

import attrs
import orjson
from quart import Quart, g
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from runner.errors import (
    BadInput,
    Busy,
    Conflict,
    DiskFull,
    InvalidParameter,
    LoadTimeout,
    NotFound,
    QueueFull,
    RegistryDenied,
    RegistryError,
    RegistryUnauthorized,
    RemoteModelNotFound,
    RequestQuarantined,
    RunnerError,
    StoreError,
    TooLarge,
    UnsupportedArtifact,
    UnsupportedModel,
    UnsupportedParameter,
    WorkerCrashed,
)

log = logging.getLogger(__name__)

STATUS_OF_CLASS: dict[type[RunnerError], int] = {
    BadInput: 400,
    TooLarge: 413,
    NotFound: 404,
    Conflict: 409,
    Busy: 503,
    QueueFull: 429,
    RequestQuarantined: 422,  # of all statuses that fit, one that client libraries do not retry
    LoadTimeout: 504,
    WorkerCrashed: 502,
    StoreError: 500,
    DiskFull: 507,
    RegistryError: 502,
    RegistryUnauthorized: 401,
    RegistryDenied: 403,
    RemoteModelNotFound: 404,
    UnsupportedArtifact: 422,
    UnsupportedModel: 422,
}
"""A class without a row has the status of its nearest base that has one; without any, 500."""

_CODE_OF_STATUS = {
    400: "bad_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    431: "headers_too_large",
}
_TYPE_OF_STATUS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MESSAGE_LIMIT = 4096  # a body with thousands of faulty fields must not become an answer of megabytes


@attrs.frozen(kw_only=True)
class Refusal:
    """An answer that is an error. `param` is the first faulty field; `retry_after_s` counts whole seconds."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    allow: tuple[str, ...] = ()

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Every header but the length, names in lower case."""
        headers = [("content-type", "application/json"), ("x-content-type-options", "nosniff")]
        if self.retry_after_s is not None:
            headers.append(("retry-after", str(self.retry_after_s)))
        if self.allow:
            headers.append(("allow", ", ".join(self.allow)))
        return tuple(headers)


def status_of(error: BaseException) -> int:
    """The HTTP status of an error, by its nearest class in `STATUS_OF_CLASS`; 500 for everything else."""
    for ancestor in type(error).__mro__:
        if ancestor in STATUS_OF_CLASS:
            return STATUS_OF_CLASS[ancestor]
    return 500


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error: everything of ours, the status of HTTP's, nothing of the rest."""
    if isinstance(error, RunnerError):
        faults = error.faults if isinstance(error, InvalidParameter | UnsupportedParameter) else ()
        return Refusal(
            status=status_of(error),
            code=error.code,
            message=str(error),
            param=faults[0].path if faults else None,
            retry_after_s=max(1, math.ceil(error.retry_after_s)) if isinstance(error, Busy) else None,
        )
    if isinstance(error, HTTPException) and error.code is not None:
        return _refusal_of_http(error)
    return INTERNAL_ERROR


def _refusal_of_http(error: HTTPException) -> Refusal:
    status = error.code or 500
    if status >= 500:
        return INTERNAL_ERROR
    allow = tuple(sorted(error.valid_methods or ())) if isinstance(error, MethodNotAllowed) else ()
    return Refusal(
        status=status,
        code=_CODE_OF_STATUS.get(status, "bad_request"),
        message=_http_message(status),
        allow=allow,
    )


def _http_message(status: int) -> str:
    match status:
        case 404:
            return "there is nothing at this path"
        case 405:
            return "this path does not answer this method"
    return HTTPStatus(status).phrase


INTERNAL_ERROR = Refusal(
    status=500, code="internal_error", message="the request failed inside the server; its log says why"
)


def envelope(refusal: Refusal) -> dict[str, dict[str, str | None]]:
    """`{"error": {"message", "type", "param", "code"}}`, OpenAI's shape, in bodies and in error events."""
    return {
        "error": {
            "message": _bounded_text(refusal.message),
            "type": _TYPE_OF_STATUS.get(
                refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error"
            ),
            "param": None if refusal.param is None else _bounded_text(refusal.param),
            "code": refusal.code,
        }
    }


def encode(refusal: Refusal) -> bytes:
    """The envelope as strict JSON in valid UTF-8."""
    return orjson.dumps(envelope(refusal))


def to_response(refusal: Refusal) -> TrioResponse:
    response = TrioResponse(encode(refusal), status=refusal.status)
    for name, value in refusal.headers:
        response.headers[name] = value
    return response


def _bounded_text(text: str) -> str:
    """A message may quote a client: replace what is no Unicode (a lone surrogate), cut what is too long."""
    if len(text) > _MESSAGE_LIMIT:
        text = text[: _MESSAGE_LIMIT - 1] + "…"
    return text.encode("utf-8", "replace").decode()


def leading_error(error: BaseException) -> BaseException:
    """The error of a group that decides the answer: the first of ours, else the first of HTTP's, else any."""
    leaves = list(_leaves(error))
    for kind in (RunnerError, HTTPException):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def install_error_handlers(app: Quart) -> None:
    """Every error that no blueprint handles itself leaves through the table above."""

    @app.errorhandler(HTTPException)
    async def on_http_exception(error: HTTPException) -> TrioResponse | HTTPException:
        if error.code is None or error.code < 400:  # a redirect, or a response somebody raised on purpose
            return error
        return to_response(refusal_of(error))

    @app.errorhandler(Exception)
    async def on_exception(error: Exception) -> TrioResponse:
        if not isinstance(error, RunnerError):
            log.error("request %s failed", g.get("request_id", "-"), exc_info=error)
        return to_response(refusal_of(error))
