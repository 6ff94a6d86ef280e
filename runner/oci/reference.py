"""Names of models: the grammar, its normal form, and what a client may write instead.

Owns every decision about names; HTTP, commands, settings and the disk all come through here (N19).
Imports the error tree and digests. The grammar is that of OCI distribution references; the defaults are
those of Docker Model Runner (registry `docker.io`, namespace `ai`, tag `latest`).
"""

from __future__ import annotations

import re
from typing import Self

import attrs

from runner.errors import InvalidReference
from runner.oci.digest import Digest

DEFAULT_REGISTRY = "docker.io"
DEFAULT_NAMESPACE = "ai"
DEFAULT_TAG = "latest"
LENGTH_MAX = 255  # characters, of the text and of its canonical form (N19)

_REGISTRY_ALIASES = {"hf.co": "huggingface.co", "index.docker.io": DEFAULT_REGISTRY}
_HOST_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[0-9a-f:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LOOKS_LIKE_DIGEST = re.compile(r"(?:sha[0-9]+|md5|blake[0-9a-z]+):.*|[0-9a-fA-F]{64}", re.DOTALL)
_SHORT_ID = re.compile(r"[0-9a-f]{7,63}")
_BARE_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


@attrs.frozen(kw_only=True, repr=False)
class Reference:
    """One name in normal form: at least one of `tag` and `digest` is set.

    Two references are equal exactly when their canonical texts are. `str` gives the canonical text
    (`docker.io/ai/smollm2:135M-Q4_1`), which parses back to the same value. Building one that is outside the
    grammar raises InvalidReference.
    """

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference that a client means; raises InvalidReference.

        1. A leading `hf.co` or `index.docker.io` becomes the registry's full name.
        2. The first component is a registry when it holds `.` or `:` or is `localhost`; else `docker.io` is.
        3. A name without namespace on `docker.io` gets `ai/`.
        4. Registry and repository are lower-cased, the tag is not.
        5. A missing or empty tag is `latest`, unless there is a digest.
        """
        text = _checked(text)
        if _LOOKS_LIKE_DIGEST.fullmatch(text):
            raise InvalidReference(text, "it looks like a digest, which is not a name")
        named, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        name, tag = _split_tag(named)
        registry, repository = _split_registry(name.lower())
        tag = tag or (None if digest else DEFAULT_TAG)
        return cls(registry=registry, repository=repository, tag=tag, digest=digest)

    def familiar(self) -> str:
        """The shortest text for people that parses back to this: `ai/smollm2:135M-Q4_1`, `ai/smollm2`."""
        first = self.repository.partition("/")[0]
        hides_registry = self.registry == DEFAULT_REGISTRY and not _is_registry(first)
        tag = None if self.tag == DEFAULT_TAG and self.digest is None else self.tag
        return ("" if hides_registry else f"{self.registry}/") + self._repository_with(tag)

    def without_digest(self) -> Self:
        """The tag alone, as it stands in the index. Only for a reference that has a tag."""
        return attrs.evolve(self, digest=None)

    def _repository_with(self, tag: str | None) -> str:
        digest = f"@{self.digest}" if self.digest else ""
        return self.repository + (f":{tag}" if tag else "") + digest

    def __attrs_post_init__(self) -> None:
        fault = self._fault()
        if fault is not None:
            raise InvalidReference(str(self), fault)

    def _fault(self) -> str | None:
        if _REGISTRY.fullmatch(self.registry) is None or not _is_port_valid(self.registry):
            return "the registry is no host name"
        if _REPOSITORY.fullmatch(self.repository) is None:
            return "its parts are letters and digits, joined by one of . _ __ -"
        if self.tag is None and self.digest is None:
            return "it has neither tag nor digest"
        if self.tag is not None and _TAG.fullmatch(self.tag) is None:
            return "a tag is 1 to 128 letters, digits, _ . or -, and starts with neither . nor -"
        if len(str(self)) > LENGTH_MAX:
            return f"with registry and tag it is longer than {LENGTH_MAX} characters"
        return None

    def __str__(self) -> str:
        return f"{self.registry}/{self._repository_with(self.tag)}"

    def __repr__(self) -> str:
        return f"<Reference {self}>"


@attrs.frozen(kw_only=True)
class ModelName:
    """What a client wrote to mean a model that should be in the store.

    `reference` and `short_id` may both be set: hex digits may be either, and an exact name wins. `digest` is
    set for a bare digest only; a digest after `@` is part of `reference`. `text` is what was written.
    """

    text: str
    reference: Reference | None = None
    digest: Digest | None = None
    short_id: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The one parser of model names; raises InvalidReference.

        1. `sha256:` and 64 hex digits, or the 64 digits alone: a digest.
        2. 7 to 63 lower-case hex digits: the beginning of a digest, or a name.
        3. Anything else: a reference.
        """
        text = _checked(text)
        if text.startswith("sha256:"):
            return cls(text=text, digest=Digest.parse(text))
        if _BARE_HEX_DIGEST.fullmatch(text):
            return cls(text=text, digest=Digest(text))
        short_id = text if _SHORT_ID.fullmatch(text) else None
        return cls(text=text, reference=Reference.parse(text), short_id=short_id)

    @classmethod
    def of(cls, meant: Reference | Digest) -> Self:
        """The name of something already parsed."""
        if isinstance(meant, Digest):
            return cls(text=str(meant), digest=meant)
        return cls(text=meant.familiar(), reference=meant)

    def __str__(self) -> str:
        return self.text


def _checked(text: str) -> str:
    """The text without surrounding blanks, after the refusals that hold for every name (N19)."""
    text = text.strip(" ")
    if not text:
        raise InvalidReference(text, "it is empty")
    if len(text) > LENGTH_MAX:
        raise InvalidReference(text, f"it is longer than {LENGTH_MAX} characters")
    if not text.isascii() or not text.isprintable():
        # before lower(): the Kelvin sign and its like become ASCII letters there
        raise InvalidReference(text, "only printable ASCII characters are allowed")
    for forbidden in ("..", "//", "\\", "%"):
        if forbidden in text:
            raise InvalidReference(text, f"{forbidden} is not allowed")
    if text.startswith("-"):
        raise InvalidReference(text, "it starts with -")
    return text


def _split_tag(named: str) -> tuple[str, str | None]:
    """Name and tag, at the last colon after the last slash; no tag when it is missing or empty."""
    path, slash, last = named.rpartition("/")
    last, _, tag = last.partition(":")
    return path + slash + last, tag or None


def _split_registry(name: str) -> tuple[str, str]:
    """Registry and repository of a lower-cased name, with the defaults filled in."""
    first, slash, rest = name.partition("/")
    registry, repository = (first, rest) if slash and _is_registry(first) else (DEFAULT_REGISTRY, name)
    registry = _REGISTRY_ALIASES.get(registry, registry)
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"{DEFAULT_NAMESPACE}/{repository}"
    return registry, repository


def _is_registry(component: str) -> bool:
    return "." in component or ":" in component or component == "localhost"


def _is_port_valid(registry: str) -> bool:
    _, colon, port = registry.rpartition(":")
    return not colon or registry.endswith("]") or 1 <= int(port) <= 65535
