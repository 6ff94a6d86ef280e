"""Errors as Docker Model Runner's clients know them: a status and one line of text.

The line begins with the words that those clients know, and goes on with ours. Whoever accepts exactly JSON
gets the envelope of all other paths, which has a stable code. Imports the one table of errors.
"""

from __future__ import annotations

import json
import logging
from typing import Final

from quart import g, request
from quart_trio.wrappers import TrioResponse

from runner.api import errors
from runner.errors import (
    InvalidParameter,
    InvalidReference,
    ModelNotFound,
    NotFound,
    RegistryUnauthorized,
    RemoteModelNotFound,
    RunnerError,
)

log = logging.getLogger(__name__)

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
_KNOWN_WORDS: Final[tuple[tuple[type[RunnerError], str], ...]] = (
    (InvalidReference, "Invalid model reference"),
    (InvalidParameter, "invalid request body"),
    (RegistryUnauthorized, "Unauthorized"),
    (RemoteModelNotFound, "Model not found"),
    (ModelNotFound, "Model not found"),
)
_OWN_WORDS: Final = ("target is required", "missing repo or tag query parameter")
_SHOWN_MAX: Final = 64


def accepts_json() -> bool:
    """The header is compared as a whole, as these clients expect it."""
    return request.headers.get("Accept") == JSON


def response_to(error: Exception) -> TrioResponse:
    """The answer to the current request."""
    refusal = errors.refusal_of(error)
    if accepts_json():
        return errors.to_response(refusal)
    response = TrioResponse(text_of(error), status=refusal.status, content_type=TEXT)
    for name, value in refusal.headers:
        if name != "content-type":
            response.headers[name] = value
    return response


def log_fault(error: Exception) -> None:
    """What is none of ours is a fault of ours."""
    if not isinstance(error, RunnerError):
        log.error("request %s failed", g.get("request_id", "-"), exc_info=error)


def text_of(error: Exception) -> str:
    """One line."""
    message = errors.envelope(errors.refusal_of(error))["error"]["message"] or ""
    if isinstance(error, InvalidParameter) and error.faults[0].message in _OWN_WORDS:
        message = error.faults[0].message
    else:
        words = next((words for kind, words in _KNOWN_WORDS if isinstance(error, kind)), None)
        message = message if words is None else f"{words}: {message}"
    return " ".join(message.split()) + "\n"


def unknown_action(name: str) -> NotFound:
    return NotFound(f"unknown action {json.dumps(name[:_SHOWN_MAX])}")
