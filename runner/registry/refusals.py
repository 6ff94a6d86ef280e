"""What an answer that is no success means to us: the one place from status to error.

Imports errors. Of an answer's body only the code of its first error is repeated, and only when it looks like
one: bodies may hold anything (N21).
"""

from __future__ import annotations

import http
import re
from datetime import UTC, datetime
from typing import Final

import orjson

from runner.errors import (
    RegistryDenied,
    RegistryError,
    RegistryUnauthorized,
    RegistryUnavailable,
    RemoteModelNotFound,
    RunnerError,
)
from runner.registry.retrying import retry_after_s
from runner.registry.transport import Answer

_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{1,39}")


def error_of(answer: Answer, what: str, *, login_name: str) -> RegistryError:
    """The error for an answer whose status is not the one that was wanted; the answer is closed.

    `what` was asked for (`ai/smollm2:latest`), `login_name` is the registry as `runner ctl login` takes it.
    """
    registry, status = answer.registry, answer.status
    code = code_of(answer)
    reason = _reason(status, code)
    match status:
        case 401:
            return RegistryUnauthorized(
                registry,
                f"{what} does not exist or needs a login ({reason}); `runner ctl login {login_name}` logs in",
            )
        case 403:
            return RegistryDenied(
                registry,
                f"access to {what} was refused ({reason}); `runner ctl login {login_name}` changes the user",
            )
        case 404:
            return RemoteModelNotFound(registry, f"{what} is not there ({reason})")
        case 429:
            return _unavailable(answer, f"it takes no more requests for now ({reason})")
    if status >= 500:
        return _unavailable(answer, f"it failed ({reason})")
    may_want_tls = status == 400 and code is None and answer.authority.scheme == "http"  # so Go's servers say
    hint = "; if it speaks TLS, name its CA in registry_ca_files" if may_want_tls else ""
    return RegistryError(registry, f"it refused {what} ({reason}){hint}")


def _unavailable(answer: Answer, message: str) -> RegistryUnavailable:
    waits_s = retry_after_s(answer.headers.get("Retry-After"), datetime.now(UTC))
    if waits_s is not None:
        message += f"; it asks to come back in {waits_s:.0f} s"
    return RegistryUnavailable(answer.registry, message, retry_after_s=waits_s)


def _reason(status: int, code: str | None) -> str:
    """`404 Not Found`, with the registry's own code when it gave one."""
    try:
        phrase = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    return f"{phrase}, {code}" if code else phrase


def code_of(answer: Answer) -> str | None:
    """The registry's own code for what went wrong, when it gave one; the answer is closed."""
    try:
        document = orjson.loads(answer.read_small())
        code = document["errors"][0]["code"]
    except (RunnerError, ValueError, LookupError, TypeError):
        return None
    finally:
        answer.close()
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None
