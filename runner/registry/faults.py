"""What the libraries below raise, as errors of ours.

No message repeats theirs: they hold URLs, and URLs hold signatures and passwords (K01). Imports errors.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from collections.abc import Iterator

import requests
import urllib3

from runner.errors import RegistryError, RegistryUnavailable, RunnerError, TransferAborted
from runner.registry.call import Call
from runner.registry.pace import TooMuchFraming, TooSlow


def translated(error: Exception, call: Call) -> Exception:
    """The error of ours for what went wrong on this call; a fault of this program stays what it is."""
    if isinstance(error, RunnerError):
        return error
    if call.abort.is_aborted:
        return TransferAborted("the transfer was given up")
    registry = call.origin.registry
    where = "" if call.is_named_by_user else f" at {call.target.netloc}"
    causes = tuple(_causes(error))
    for cause in causes:
        match cause:
            case TooSlow():
                return RegistryUnavailable(registry, f"the server{where} is too slow: {cause}")
            case TooMuchFraming():
                return RegistryError(registry, f"the server{where} speaks no proper HTTP: {cause}")
            case ssl.SSLCertVerificationError():
                return RegistryError(
                    registry, f"the certificate of {call.target.netloc} is not valid: {cause.verify_message}"
                )
            case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
                return RegistryUnavailable(registry, f"the server{where} broke off the TLS connection")
            case ssl.SSLError():
                return RegistryError(
                    registry, f"no TLS connection to {call.target.netloc} ({cause.reason or 'failed'})"
                )
            case requests.exceptions.InvalidURL() | urllib3.exceptions.LocationParseError() | UnicodeError():
                return RegistryError(registry, "it named a URL that cannot be read")
    return RegistryUnavailable(registry, _unavailable(causes, call)) if _is_network(causes) else error


def _unavailable(causes: tuple[BaseException, ...], call: Call) -> str:
    where = "the server" if call.is_named_by_user else call.target.netloc
    for cause in causes:
        match cause:
            case requests.exceptions.ProxyError() | urllib3.exceptions.ProxyError():
                return f"the proxy gave no way to {call.target.netloc}"
            case socket.gaierror() | urllib3.exceptions.NameResolutionError():
                return f"the name {call.target.host} cannot be resolved"
            case TimeoutError() | requests.exceptions.Timeout() | urllib3.exceptions.TimeoutError():
                return f"{where} did not answer in time"
            case http.client.RemoteDisconnected():
                return f"{where} closed the connection without an answer"
            case OSError() if cause.errno and not isinstance(cause, requests.exceptions.RequestException):
                return f"no connection to {where}: {os.strerror(cause.errno)}"
    return f"the connection to {where} broke, or brought no HTTP"


def _is_network(causes: tuple[BaseException, ...]) -> bool:
    kinds = (
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
    )
    return isinstance(causes[0], kinds)


def _causes(error: BaseException, depth: int = 8) -> Iterator[BaseException]:
    """The error and what it was made from, which the libraries keep in arguments, `reason` or the chain."""
    yield error
    if depth == 0:
        return
    inner = [*error.args, getattr(error, "reason", None), error.__cause__, error.__context__]
    for candidate in inner:
        if isinstance(candidate, BaseException) and candidate is not error:
            yield from _causes(candidate, depth - 1)
            return
