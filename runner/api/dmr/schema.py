"""What clients of Docker Model Runner send, checked. Keys that we do not know are ignored, as there.

Field names hold dashes (`bearer-token`), so that these few are read by hand. Imports strict JSON and names.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from runner.api import strict_json
from runner.errors import FieldFault, InvalidParameter, InvalidReference
from runner.oci.reference import ModelName, Reference

TOKEN_LENGTH_MAX: Final = 8192
CONTEXT_SIZE_MAX: Final = 2**31 - 1  # the field of a config is an int32
_BEARER: Final = "bearer-token"
_TRUE: Final = frozenset({"", "1", "t", "T", "true", "TRUE", "True"})


@attrs.frozen(kw_only=True)
class CreateRequest:
    """`written` is the reference as the client wrote it."""

    written: str
    reference: Reference
    bearer_token: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class RepackageRequest:
    """`written` is the target as the client wrote it; `context_size` None leaves the source's."""

    written: str
    target: Reference
    context_size: int | None = None


def parse_create(body: bytes) -> CreateRequest:
    """Raises InvalidParameter, and InvalidReference for what is no place to pull from."""
    document = _object(body)
    written, token = _text(document, "from"), _token(document)
    if not written:
        raise InvalidParameter(FieldFault("from", "is required"))
    return CreateRequest(written=written, reference=Reference.parse(written), bearer_token=token)


def parse_push(body: bytes) -> str | None:
    """The token of a body that may be empty."""
    return _token(_object(body)) if body else None


def parse_repackage(body: bytes) -> RepackageRequest:
    """As `parse_create`."""
    document = _object(body)
    written = _text(document, "target")
    if not written:
        raise InvalidParameter(FieldFault("target", "target is required"))
    return RepackageRequest(
        written=written, target=Reference.parse(written), context_size=_context_size(document)
    )


def tag_target(repository: str | None, tag: str | None) -> tuple[str, Reference]:
    """What a model is to be called: as it was written, and as it is meant."""
    if not repository or not tag:
        raise InvalidParameter(FieldFault("repo", "missing repo or tag query parameter"))
    written = f"{repository}:{tag}"
    return written, Reference.parse(written)


def place(name: ModelName) -> Reference:
    """Where a model of this name would be; raises InvalidReference for a digest alone."""
    if name.reference is None:
        raise InvalidReference(name.text, "a digest alone does not say where the model is")
    return name.reference


def boolean(text: str | None) -> bool:
    """A query parameter: true when it stands without a value, false when it is no truth value."""
    return text is not None and text in _TRUE


def is_last_part(written: str, tag: Reference) -> bool:
    """A partial name: it equals the last part of the tag's repository."""
    return tag.repository.rpartition("/")[2] == written.lower()


def _object(body: bytes) -> dict[str, Any]:
    document = strict_json.decode(body)
    if type(document) is not dict:
        raise InvalidParameter(FieldFault(strict_json.BODY_PATH, "must be an object"))
    return document


def _text(document: dict[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is not None and type(value) is not str:
        raise InvalidParameter(FieldFault(name, "must be a string"))
    text: str | None = value
    return text


def _token(document: dict[str, Any]) -> str | None:
    token = _text(document, _BEARER)
    if token and (len(token) > TOKEN_LENGTH_MAX or not token.isascii() or not token.isprintable()):
        fault = f"must be at most {TOKEN_LENGTH_MAX} printable ASCII characters"
        raise InvalidParameter(FieldFault(_BEARER, fault))
    return token or None


def _context_size(document: dict[str, Any]) -> int | None:
    value = document.get("context_size")
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= CONTEXT_SIZE_MAX:
        raise InvalidParameter(
            FieldFault("context_size", f"must be a whole number from 1 to {CONTEXT_SIZE_MAX}")
        )
    return value
