"""Repositories of the Hugging Face hub as models: `hf.co/org/repo[:quantisation]`.

Owns what is asked of a hub and what its refusals mean. A branch is resolved once to a commit, and everything
comes from that commit (S16). Which files make a model is decided in hub_selection.py, the hub's documents are
read in hub_documents.py, and every request leaves through transport.py. Imports those, oci and domain.

A hub tells names apart by case, and references do not. So whoever asks may hand on what was typed, and the
name that the hub itself gives the repository is what later requests use.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

import attrs

from runner.domain.transfer import RemoteCredentials
from runner.errors import (
    ContentMismatch,
    CredentialsFailed,
    InvalidManifest,
    InvalidReference,
    RegistryDenied,
    RegistryError,
    RegistryUnauthorized,
    RegistryUnavailable,
    RemoteModelNotFound,
    RunnerError,
)
from runner.oci.reference import Reference
from runner.registry.abort import Abort
from runner.registry.blob_body import BlobBody, checked_range, checked_whole
from runner.registry.hub_documents import (
    DOCUMENT_BYTES_MAX,
    FILES_MAX,
    PAGES_MAX,
    GitHash,
    Revision,
    is_commit,
    is_repository_name,
    next_cursor,
    read_page,
    read_revision,
)
from runner.registry.hub_selection import HubFile, ListedFile, select
from runner.registry.retrying import retry_after_s
from runner.registry.rules import Endpoint
from runner.registry.transport import Answer, Authorization, Door

HUB_REGISTRY = "huggingface.co"
DEFAULT_ENDPOINT = "https://huggingface.co"
BRANCH = "main"
"""What is resolved: a tag names a quantisation, and never a revision."""

ANNOTATION_SOURCE = "org.opencontainers.image.source"
ANNOTATION_REVISION = "org.opencontainers.image.revision"

_ERROR_CODE = "X-Error-Code"
_OVERLOADED = 429
_PIECE_BYTES = 1 << 16


def is_hub(reference: Reference) -> bool:
    """Whether a reference is of a hub's repository rather than of a registry's."""
    return reference.registry == HUB_REGISTRY


@attrs.frozen(kw_only=True)
class HubSelection:
    """A model of a hub at one commit: what to fetch, and all that is needed to fetch it.

    `repository` is `Org/Repo` in the hub's own case, `created_s` Unix time and 0 when unknown. `notes` are
    sentences for people. `credentials` go with every request to the hub itself.
    """

    reference: Reference
    repository: str
    revision: str
    created_s: int
    files: tuple[HubFile, ...]
    quantization: str | None = None
    notes: tuple[str, ...] = ()
    credentials: RemoteCredentials = attrs.field(default=RemoteCredentials(), repr=False)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def annotations(self) -> dict[str, str]:
        """Where the model came from, for its manifest. The same revision gives the same text."""
        return {
            ANNOTATION_REVISION: self.revision,
            ANNOTATION_SOURCE: f"https://{HUB_REGISTRY}/{self.repository}",
        }


class Hub:
    """Asks one hub. Everything blocks, for threads; nothing is tried again here (see retrying.py)."""

    def __init__(self, door: Door, *, endpoint: str = DEFAULT_ENDPOINT, token: str | None = None) -> None:
        """`endpoint` is the URL of a hub, whose models are named `hf.co/…` whatever its host is.

        `token` is the user's own (`HF_TOKEN`); it goes to the endpoint's scheme, host and port only. Raises
        BadUrl for a text that is no plain URL.
        """
        self._door = door
        self._endpoint = Endpoint.of_url(endpoint, registry=HUB_REGISTRY)
        self._token = _checked_token(token)

    @property
    def endpoint(self) -> str:
        """Where the hub is."""
        return self._endpoint.url("")

    def resolve(
        self,
        reference: Reference,
        *,
        source_text: str | None = None,
        commit: str | None = None,
        given: RemoteCredentials | None = None,
        abort: Abort | None = None,
    ) -> HubSelection:
        """Which files of which commit make the model. `source_text` is the reference as somebody typed it.

        Without a `commit` it is the newest one.
        Raises RemoteModelNotFound, RegistryUnauthorized and RegistryDenied with what to do,
        UnsupportedArtifact, AmbiguousModel, InvalidManifest, RegistryUnavailable when another attempt may
        help, TransferAborted.
        """
        if reference.digest is not None:
            raise InvalidReference(str(reference), "models of a hub have no digest until they are here")
        typed = repository_as_typed(reference, source_text)
        credentials = given if given is not None and given.bearer_token else RemoteCredentials()
        revision = self._revision(typed, commit or BRANCH, credentials, abort)
        repository = revision.name or typed
        notes: tuple[str, ...] = ()
        if repository.lower() != reference.repository:
            notes = (f"{typed} is called {repository} now",)
        files = self._list(repository, revision.commit, credentials, abort)
        chosen = select(files, reference.tag, repository=repository, registry=HUB_REGISTRY)
        return HubSelection(
            reference=reference,
            repository=repository,
            revision=revision.commit,
            created_s=revision.created_s,
            files=chosen.files,
            quantization=chosen.quantization,
            notes=notes + chosen.notes,
            credentials=credentials,
        )

    def open_file(
        self,
        selection: HubSelection,
        file: HubFile,
        *,
        start: int = 0,
        end: int | None = None,
        abort: Abort | None = None,
    ) -> BlobBody:
        """The bytes of a file from `start` to `end` (default: its end); without both, no range is asked for.

        Nothing is verified here but the length: the digest covers the whole file. Raises RangeRefused, and
        what `resolve` raises.
        """
        path = f"/{quote(selection.repository)}/resolve/{selection.revision}/{quote(file.path)}"
        last = file.size_bytes if end is None else end
        is_range = (start, end) != (0, None)
        answer = self._get(
            path,
            selection.repository,
            selection.credentials,
            abort,
            headers={"Range": f"bytes={start}-{last - 1}"} if is_range else None,
            is_small=False,
        )
        what = f"{file.path!r:.120} of {selection.repository}"
        if is_range:
            checked_range(answer, start=start, end=last, size_bytes=file.size_bytes)
        elif answer.status != 200:
            answer.close()
            raise RegistryError(HUB_REGISTRY, f"it answered {answer.status} where no range was asked for")
        else:
            checked_whole(answer, size_bytes=file.size_bytes, what=what)
        return BlobBody(answer, what=what, start=start, end=last)

    def read_file(self, selection: HubSelection, file: HubFile, *, abort: Abort | None = None) -> bytes:
        """All of a file without a SHA-256, checked against the hash of git; PLAIN_FILE_BYTES_MAX at most.

        Raises ContentMismatch for other bytes than were listed, and what `resolve` raises.
        """
        content = memoryview(bytearray(file.size_bytes))
        body = self.open_file(selection, file, abort=abort)
        try:
            done_bytes = 0
            while size_bytes := body.readinto(content[done_bytes : done_bytes + _PIECE_BYTES]):
                done_bytes += size_bytes
        finally:
            body.close()
        hashing = GitHash(file.size_bytes)
        hashing.update(content)
        if done_bytes != file.size_bytes or file.git_oid not in (None, hashing.hexdigest()):
            raise ContentMismatch(
                f"{HUB_REGISTRY}: {file.path!r:.120} is not what {selection.repository} lists"
            )
        return bytes(content)

    def _revision(
        self, repository: str, named: str, credentials: RemoteCredentials, abort: Abort | None
    ) -> Revision:
        query = urlencode([("expand", member) for member in ("sha", "lastModified")])
        path = f"/api/models/{quote(repository)}/revision/{named}?{query}"
        with self._get(path, repository, credentials, abort) as answer:
            return read_revision(answer.read_small(DOCUMENT_BYTES_MAX))

    def _list(
        self, repository: str, commit: str, credentials: RemoteCredentials, abort: Abort | None
    ) -> list[ListedFile]:
        """All files of the commit, page by page; the user's own endpoint is asked for every page."""
        files: list[ListedFile] = []
        cursors: list[tuple[str, str]] = []
        for _ in range(PAGES_MAX):
            query = urlencode([("recursive", "true"), *cursors])
            path = f"/api/models/{quote(repository)}/tree/{commit}?{query}"
            with self._get(path, repository, credentials, abort) as answer:
                cursor = next_cursor(answer.headers.get("Link"))
                files.extend(read_page(answer.read_small(DOCUMENT_BYTES_MAX)))
            if len(files) > FILES_MAX:
                raise InvalidManifest(f"{repository} lists more than {FILES_MAX} files")
            if cursor is None:
                return files
            cursors = [("cursor", cursor)]
        raise InvalidManifest(f"{repository} lists its files on more than {PAGES_MAX} pages")

    def _get(
        self,
        path: str,
        repository: str,
        credentials: RemoteCredentials,
        abort: Abort | None,
        *,
        headers: Mapping[str, str] | None = None,
        is_small: bool = True,
    ) -> Answer:
        """An answer of success. Raises what its status means otherwise."""
        token = _checked_token(credentials.bearer_token) or self._token
        authority = self._endpoint.authority
        answer = self._door.request(
            "GET",
            self._endpoint.url(path),
            origin=self._endpoint,
            headers=headers,
            authorization=Authorization(f"Bearer {token}", authority) if token else None,
            abort=abort,
            is_small=is_small,
        )
        if answer.status == 200 or (answer.status in (206, 416) and not is_small):
            return answer
        with answer:
            if answer.authority != authority:
                # Addresses of content are signed for a while: the hub gives a new one to whoever asks again.
                pause_s = retry_after_s(answer.headers.get("Retry-After"), datetime.now(UTC))
                where = answer.authority.netloc
                raise RegistryUnavailable(
                    HUB_REGISTRY,
                    f"it sent us to {where}, which answered {answer.status}",
                    retry_after_s=pause_s,
                )
            raise _refusal(answer, repository, has_token=token is not None)


def repository_as_typed(reference: Reference, source_text: str | None) -> str:
    """`Org/Repo` in the case it was typed in; in lower case when the text is missing or of something else.

    Raises InvalidReference unless the reference names an organisation and a repository.
    """
    if not is_repository_name(reference.repository):
        raise InvalidReference(str(reference), "models of a hub are named hf.co/organisation/repository")
    found = (source_text or "").lower().find(f"/{reference.repository}")
    if found < 0 or source_text is None:
        return reference.repository
    return source_text[found + 1 : found + 1 + len(reference.repository)]


def origin_of(reference: Reference, annotations: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Where a stored model of this name came from: what to type for it, and its commit; None for neither.

    The annotations of a manifest are anybody's text: they count when they are of this very repository.
    """
    repository = annotations.get(ANNOTATION_SOURCE, "").removeprefix(f"https://{HUB_REGISTRY}/")
    if not is_repository_name(repository) or repository.lower() != reference.repository:
        return None, None
    commit = annotations.get(ANNOTATION_REVISION, "")
    return f"{HUB_REGISTRY}/{repository}", commit if is_commit(commit) else None


def _checked_token(token: str | None) -> str | None:
    """The token without blanks around it; raises CredentialsFailed for one that no header can hold."""
    token = (token or "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CredentialsFailed("the token for huggingface.co holds characters that no token has")
    return token or None


def _refusal(answer: Answer, repository: str, *, has_token: bool) -> RunnerError:
    """What an answer that is no success means. Its body is not read: a sentence of ours is shown instead.

    1. A gated repository: a token that is missing, or one whose owner has not been admitted.
    2. 401 and 404: the hub does not tell a missing repository from one that the asker may not see.
    3. 403: somebody known is refused.
    4. 429 and faults of the hub: worth another attempt.
    """
    where = f"https://{HUB_REGISTRY}/{repository}"
    is_gated = answer.headers.get(_ERROR_CODE) == "GatedRepo"
    if is_gated and not has_token:
        return RegistryUnauthorized(
            HUB_REGISTRY,
            f"{repository} is gated: ask for access at {where}, and set HF_TOKEN to a token of yours",
        )
    if is_gated:
        return RegistryDenied(
            HUB_REGISTRY, f"{repository} is gated and not open to the owner of this HF_TOKEN: ask at {where}"
        )
    if answer.status == 401 and has_token:
        return RegistryUnauthorized(
            HUB_REGISTRY,
            f"{repository} does not exist, or is not for this HF_TOKEN, or the token has expired",
        )
    if answer.status in (401, 404):
        return RemoteModelNotFound(
            HUB_REGISTRY,
            f"{repository} does not exist, or is private and needs HF_TOKEN (upper and lower case count)",
        )
    if answer.status == 403:
        return RegistryDenied(
            HUB_REGISTRY, f"{repository} is not open to {'this HF_TOKEN' if has_token else 'all'}"
        )
    if answer.status == _OVERLOADED or answer.status >= 500:
        pause_s = retry_after_s(answer.headers.get("Retry-After"), datetime.now(UTC))
        return RegistryUnavailable(HUB_REGISTRY, f"it answered {answer.status}", retry_after_s=pause_s)
    return RegistryError(HUB_REGISTRY, f"it answered {answer.status} for {repository}")
