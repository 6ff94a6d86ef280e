"""What the control API is sent about transfers and the disk, checked. Imports the machinery of schemas."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import attrs

from runner.api import strict_json
from runner.api.structure import By, Fault, Length, Schema
from runner.domain.transfer import PullRequest, PushRequest, RemoteCredentials
from runner.errors import FieldFault, InvalidParameter, InvalidReference
from runner.oci.reference import ModelName, Reference

SECRET_LENGTH_MAX: Final = 8192
MODELS_MAX: Final = 256

_SCHEMA: Final = Schema(forbid_unknown=True)
T = TypeVar("T")


def _read_secret(value: Any) -> str:
    """Text that can stand in a header and in a login."""
    if type(value) is not str or not value or len(value) > SECRET_LENGTH_MAX or not value.isprintable():
        raise Fault(f"must be 1 to {SECRET_LENGTH_MAX} printable characters")
    secret: str = value
    return secret


def _read_place(value: Any) -> tuple[str, Reference]:
    """A reference, and what was written; a digest alone names no registry."""
    if type(value) is not str:
        raise Fault("must be a string")
    try:
        name = ModelName.parse(value)
    except InvalidReference as error:
        raise Fault(str(error)) from None
    if name.reference is None:
        raise Fault("a digest alone does not say where the model is; write NAME@sha256:…")
    return value, name.reference


Secret = Annotated[str, By(_read_secret)]
Place = Annotated[tuple[str, Reference], By(_read_place)]


@attrs.frozen(kw_only=True)
class _Credentials:
    username: Secret | None = attrs.field(default=None, repr=False)
    password: Secret | None = attrs.field(default=None, repr=False)
    bearer_token: Secret | None = attrs.field(default=None, repr=False)

    def given(self) -> RemoteCredentials | None:
        """None when there are none. Raises InvalidParameter for half a login."""
        if (self.username is None) != (self.password is None):
            raise InvalidParameter(FieldFault("password", "goes with a username, and a username with it"))
        given = RemoteCredentials(
            username=self.username, password=self.password, bearer_token=self.bearer_token
        )
        return None if given.is_empty else given


@attrs.frozen(kw_only=True)
class _Pull(_Credentials):
    reference: Place


@attrs.frozen(kw_only=True)
class _Push(_Credentials):
    reference: ModelName
    target: Reference | None = None


@attrs.frozen(kw_only=True)
class GcRequest:
    """`prune`: models without a name go as well. `dry_run`: only tell what would go."""

    prune: bool = False
    dry_run: bool = False


@attrs.frozen(kw_only=True)
class VerifyRequest:
    """`models` None: every one."""

    models: Annotated[tuple[ModelName, ...], Length(1, MODELS_MAX)] | None = None


@attrs.frozen(kw_only=True)
class RepairRequest(_Credentials):
    model: ModelName


def parse_pull(body: bytes) -> PullRequest:
    """All of these raise InvalidParameter with every fault."""
    asked = _parse(body, _Pull)
    written, reference = asked.reference
    return PullRequest(reference=reference, given=asked.given(), source_text=written)


def parse_remote(body: bytes) -> PullRequest:
    """A model to look at where it is; the fields are those of a pull."""
    return parse_pull(body)


def parse_push(body: bytes) -> PushRequest:
    asked = _parse(body, _Push)
    return PushRequest(name=asked.reference, target=asked.target, given=asked.given())


def parse_gc(body: bytes) -> GcRequest:
    return _parse(body or b"{}", GcRequest)


def parse_verify(body: bytes) -> VerifyRequest:
    return _parse(body or b"{}", VerifyRequest)


def parse_repair(body: bytes) -> RepairRequest:
    return _parse(body, RepairRequest)


def _parse(body: bytes, kind: type[T]) -> T:
    return _SCHEMA.structure(strict_json.decode(body), kind)
