"""The door in: one pure function that says whether a request may enter, before routing and before its body.

Owns the rules against pages in a browser that speak to local ports, against upgrades, and the size of bodies.
Every request of every listener passes `admit`, routes never check any of this again. Pure; imports heads and
refusals only. Caller: `runner.api.protocol`. Requirements: N02 to N05, N09, N22, N25.
"""

from __future__ import annotations

import attrs

from runner.api.errors import Refusal
from runner.api.head import RequestHead

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_OWN_SITES = frozenset({"none", "same-origin"})

CONTROL_PREFIXES = ("/control/", "/models/")
UPLOAD_PATHS = frozenset({"/control/v1/blobs", "/control/v1/load", "/models/load"})


@attrs.frozen(kw_only=True)
class AdmissionPolicy:
    """What one listener lets in.

    `hosts`: exact values of the Host header, in lower case, or None where Host says nothing (a unix socket).
    `origins`: exact values of the Origin header. Sizes in bytes.
    """

    hosts: frozenset[str] | None
    origins: frozenset[str] = frozenset()
    control_body_bytes: int = 1024 * 1024
    inference_body_bytes: int = 32 * 1024 * 1024


def admit(head: RequestHead, policy: AdmissionPolicy) -> Refusal | None:
    """None lets the request in; otherwise the first of these answers it, and its body is never read.

    1. Host: exactly one, and listed; the authority of an absolute target is the same one (N02).
    2. Origin: none, or one that is listed; `null` is listed by nobody (N03).
    3. Sec-Fetch-Site: a page of another site is refused unless its Origin is listed (N04).
    4. API keys: their place is here (N22). Without keys the daemon listens on loopback only (N01).
    5. CONNECT, TRACE and every upgrade: one protocol is spoken here (N25).
    6. A request by a page that changes something carries JSON, which a form cannot send (N05).
    7. The announced size; a body that announces none is counted as it arrives (N09).
    """
    return (
        _check_host(head, policy)
        or _check_origin(head, policy)
        or _check_site(head, policy)
        or _check_protocol(head)
        or _check_media_type(head)
        or _check_size(head, policy)
    )


def body_limit_bytes(head: RequestHead, policy: AdmissionPolicy) -> int | None:
    """How large the body may be; None: as large as the disk takes, because the route streams it there."""
    path = head.path
    if path in UPLOAD_PATHS and head.method == "POST":
        return None
    return policy.control_body_bytes if path.startswith(CONTROL_PREFIXES) else policy.inference_body_bytes


def too_large(limit_bytes: int) -> Refusal:
    return Refusal(
        status=413,
        code="request_too_large",
        message=f"the body is larger than the limit of {limit_bytes} bytes",
    )


_CLEARTEXT_HTTP2 = "h2c"


def _check_host(head: RequestHead, policy: AdmissionPolicy) -> Refusal | None:
    if policy.hosts is None:
        return None
    hosts = head.values("host")
    if len(hosts) != 1 or hosts[0] not in policy.hosts or head.authority not in (None, hosts[0]):
        return _forbidden("host_not_allowed", "the Host header does not name this server")
    return None


def _check_origin(head: RequestHead, policy: AdmissionPolicy) -> Refusal | None:
    origins = head.values("origin")
    if not origins or _is_listed_origin(head, policy):
        return None
    return _forbidden("origin_not_allowed", "this web origin is not allowed to use the server")


def _check_site(head: RequestHead, policy: AdmissionPolicy) -> Refusal | None:
    if _OWN_SITES.issuperset(head.values("sec-fetch-site")) or _is_listed_origin(head, policy):
        return None
    return _forbidden("cross_site_request", "pages of other sites are not allowed to use the server")


def _is_listed_origin(head: RequestHead, policy: AdmissionPolicy) -> bool:
    origins = head.values("origin")
    return len(origins) == 1 and origins[0] in policy.origins


def _check_protocol(head: RequestHead) -> Refusal | None:
    """An offer of HTTP/2 is passed over and its request served as it stands: Java's client makes one with
    every first request. Whoever asks for another protocol cannot go on with this one, and is refused."""
    if head.method in ("CONNECT", "TRACE"):
        return Refusal(
            status=405, code="method_not_allowed", message=f"{head.method} is not served here", allow=METHODS
        )
    if any(value.strip().lower() != _CLEARTEXT_HTTP2 for value in head.values("upgrade")):
        return Refusal(
            status=400,
            code="upgrade_refused",
            message="the connection cannot be upgraded to another protocol",
        )
    return None


def _check_media_type(head: RequestHead) -> Refusal | None:
    """Bodiless DELETE, PUT and PATCH need no type: a page cannot send those without asking first."""
    if not _is_from_a_page(head) or (head.method != "POST" and not head.has_body):
        return None
    types = head.values("content-type")
    if len(types) == 1 and types[0].partition(";")[0].strip().lower() == "application/json":
        return None
    return Refusal(
        status=415, code="unsupported_media_type", message="a page must send its body as application/json"
    )


def _is_from_a_page(head: RequestHead) -> bool:
    return any(name == "origin" or name.startswith("sec-fetch-") for name, _ in head.headers)


def _check_size(head: RequestHead, policy: AdmissionPolicy) -> Refusal | None:
    limit_bytes = body_limit_bytes(head, policy)
    if limit_bytes is not None and (head.content_length or 0) > limit_bytes:
        return too_large(limit_bytes)
    return None


def _forbidden(code: str, message: str) -> Refusal:
    return Refusal(status=403, code=code, message=message)
