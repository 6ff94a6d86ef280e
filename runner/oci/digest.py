"""The digest type: the only value that can become the path of a blob.

Imports only the error tree. One algorithm, lowercase hex, 64 digits: what nobody here verifies is not a
digest (S01).
"""

from __future__ import annotations

import hashlib
import re
from typing import Self

import attrs

from runner.errors import InvalidReference

ALGORITHM = "sha256"
_PREFIX = f"{ALGORITHM}:"
_HEX = re.compile(r"[0-9a-f]{64}")
_SHORT_LENGTH = 12  # what registries' tools print


def _check_hex(_instance: Digest, _attribute: object, value: str) -> None:
    if _HEX.fullmatch(value) is None:
        raise InvalidReference(value, "a digest is sha256: and 64 lowercase hex digits")


@attrs.frozen(repr=False)
class Digest:
    """`sha256:` and 64 lowercase hex digits. Building one from anything else raises InvalidReference."""

    hex: str = attrs.field(validator=_check_hex)

    @classmethod
    def parse(cls, text: str) -> Self:
        """A digest from `sha256:<hex>`; raises InvalidReference for every other text or algorithm."""
        if not text.startswith(_PREFIX):
            raise InvalidReference(text, "a digest is sha256: and 64 lowercase hex digits")
        return cls(text.removeprefix(_PREFIX))

    @classmethod
    def of(cls, content: bytes) -> Self:
        """The digest of these bytes."""
        return cls(hashlib.sha256(content).hexdigest())

    def short(self) -> str:
        """The first 12 hex digits, for people."""
        return self.hex[:_SHORT_LENGTH]

    def __str__(self) -> str:
        return _PREFIX + self.hex

    def __repr__(self) -> str:
        return f"<Digest {self.short()}>"
