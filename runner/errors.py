"""The error tree, one class per thing that can go wrong.

    RunnerError
    ├── BadInput                     the caller's fault; nothing has changed
    │   ├── InvalidParameter         400  one or more fields, all reported at once
    │   ├── UnsupportedParameter     400  known fields that would change the result and are not implemented
    │   ├── InvalidReference         400  a model name or digest outside the grammar
    │   ├── InvalidModelFile         400  a GGUF (or other part) that must not reach the engine
    │   ├── UnsupportedModel         422  weights that are kept and cannot be loaded (safetensors, archives)
    │   ├── InvalidManifest          400  a manifest, config or index outside the format or its limits
    │   ├── InvalidArchive           400  a saved model outside its format, or with members it must not have
    │   ├── ContentMismatch          400  bytes that are not what their digest or length announced
    │   ├── TemplateFailed           400  the chat template could not render this request
    │   ├── ContextLengthExceeded    400  the prompt does not fit, with both numbers
    │   └── TooLarge                 413  a body or upload beyond its limit
    ├── NotFound
    │   ├── ModelNotFound            404
    │   ├── RequestNotFound          404  a request that nobody remembers
    │   └── BlobNotFound             404  a package names content that was never uploaded
    ├── Conflict
    │   ├── AmbiguousModel           409  a short id with several candidates
    │   ├── ModelInUse               409  removal of what is loaded or loading
    │   └── ModelQuarantined         409  a model whose loads crashed; freed by command
    ├── Busy                         may succeed later; carries retry_after_s
    │   ├── QueueFull                429
    │   ├── InsufficientMemory       503  with needed, free and reserved bytes
    │   ├── LoadingFailed            503
    │   ├── BreakerOpen              503  workers of this model keep crashing; it is left alone for a while
    │   ├── Draining                 503  the daemon is shutting down
    │   └── Unavailable              503  an actor restarts or has ended
    ├── RequestQuarantined           422  this very request has ended two workers
    ├── LoadTimeout                  504
    ├── WorkerCrashed                502  with model, signal or exit code, request
    ├── ReaderTooSlow                500  a client left too much undelivered; seen only in mid-stream
    ├── ProtocolFault                500  bytes on the worker channel outside the schema
    ├── EngineFailed                 500  the engine could not go on with this request; others are untouched
    ├── StoreError                   500  the disk side failed
    │   ├── DiskFull                 507
    │   └── StoreDamaged             500  what is on disk is not what its name says
    ├── RegistryError                502  a registry, or the way to it, failed; names the registry
    │   ├── RegistryUnauthorized     401  it wants credentials, or other ones
    │   ├── RegistryDenied           403
    │   ├── RemoteModelNotFound      404
    │   ├── RegistryUnavailable      502  this attempt failed, and another may succeed
    │   ├── RangeRefused             502  it did not answer with exactly the range that was asked for
    │   ├── AddressRefused           502  a host that an answer named, and that we do not talk to
    │   └── UnsupportedArtifact      422  what it has is no model that we read
    ├── TransferAborted                   we gave it up ourselves; nobody is told
    ├── CredentialsFailed            500  a login file or credential helper could not be used
    └── StartRefused                      the daemon must not start: settings, lock, socket

A class carries fields; `str(error)` is a sentence for people that holds no path, environment value or stack.
`api/errors.py` is the one table from class to HTTP status. Imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class RunnerError(Exception):
    """Base of all errors of ours. `code` is stable and part of the API."""

    code: ClassVar[str] = "internal_error"


@dataclass(frozen=True, slots=True)  # every command imports this module, and attrs costs 12 ms
class FieldFault:
    """One thing wrong with one field: `path` as clients write it (`messages[0].role`)."""

    path: str
    message: str


class BadInput(RunnerError):
    code = "invalid_parameter"


class _FieldFaults(BadInput):
    def __init__(self, *faults: FieldFault) -> None:
        super().__init__("; ".join(f"{fault.path}: {fault.message}" for fault in faults))
        self.faults = faults


class InvalidParameter(_FieldFaults):
    """Fields that are missing, of the wrong type or out of range; every one of them, not the first."""

    code = "invalid_parameter"


class UnsupportedParameter(_FieldFaults):
    """Known fields that would change the result and are not implemented here."""

    code = "unsupported_parameter"


class InvalidReference(BadInput):
    """Text that is no model name, tag or digest under the one grammar."""

    code = "invalid_reference"

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"{text[:80]!r} is not a model name: {reason}")
        self.text = text
        self.reason = reason


class InvalidModelFile(BadInput):
    """A model part that was refused before the engine saw it."""

    code = "invalid_model_file"


class UnsupportedModel(BadInput):
    """A model that can be kept and passed on, whose weights the engine does not read."""

    code = "unsupported_artifact"


class InvalidManifest(BadInput):
    """A manifest, config or index outside its format or limits; also one that was already on disk."""

    code = "invalid_manifest"


class InvalidArchive(BadInput):
    """An archive that is no saved model, or has members that it must not have; nothing of it was stored."""

    code = "invalid_archive"


class ContentMismatch(BadInput):
    """Content whose bytes or length differ from what was announced; nothing of it became visible."""

    code = "content_mismatch"


class TemplateFailed(BadInput):
    """The model's chat template refused or could not render the request."""

    code = "template_failed"


class ContextLengthExceeded(BadInput):
    """The prompt leaves no room for an answer; both numbers are told."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, context_size: int, what: str = "the prompt") -> None:
        super().__init__(
            f"{what} has {prompt_tokens} tokens and the context holds {context_size} "
            f"(one more is needed to answer)"
        )
        self.prompt_tokens = prompt_tokens
        self.context_size = context_size


class TooLarge(BadInput):
    """A body, upload or message beyond its limit."""

    code = "request_too_large"

    def __init__(self, what: str, limit_bytes: int) -> None:
        super().__init__(f"{what} is larger than the limit of {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class NotFound(RunnerError):
    """There is nothing under this name."""

    code = "not_found"


class ModelNotFound(NotFound):
    """The store has no model of this name, digest or short id."""

    code = "model_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"model {name!r} is not in the store")
        self.name = name


class RequestNotFound(NotFound):
    """A request that the scheduler never saw, or has forgotten."""

    code = "request_not_found"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"no request {request_id!r} is remembered")
        self.request_id = request_id


class BlobNotFound(NotFound):
    """Content that a package or manifest names and the store does not have."""

    code = "blob_not_found"

    def __init__(self, digest: str) -> None:
        super().__init__(f"the store has no content {digest}; upload it first")
        self.digest = digest


class Conflict(RunnerError):
    """The request contradicts what is there."""

    code = "conflict"


class AmbiguousModel(Conflict):
    """A short id that several models begin with; they are listed."""

    code = "ambiguous"

    def __init__(self, name: str, candidates: tuple[str, ...]) -> None:
        super().__init__(f"{name!r} may mean {', '.join(candidates)}")
        self.name = name
        self.candidates = candidates


class ModelInUse(Conflict):
    """Removal of a model that is loaded or loading."""

    code = "model_in_use"

    def __init__(self, name: str) -> None:
        super().__init__(f"model {name!r} is loaded or loading; unload it first")
        self.name = name


class ModelQuarantined(Conflict):
    """Loading the model has crashed the engine; it is free again by command, new content or a new engine."""

    code = "model_quarantined"

    def __init__(self, *, model: str, crashes: int, cause: str) -> None:
        super().__init__(
            f"{model} is in quarantine: loading it crashed the engine {crashes} times, last by {cause}; "
            f"`runner ctl unquarantine` frees it"
        )
        self.model = model
        self.crashes = crashes
        self.cause = cause


class RequestQuarantined(RunnerError):
    """This very request was there both times when workers of the model died; others are served."""

    code = "request_quarantined"

    def __init__(self, model: str) -> None:
        super().__init__(f"this request has ended the worker of {model} twice and is not run again for now")
        self.model = model


class Busy(RunnerError):
    """Nothing is wrong with the request; it may succeed after `retry_after_s` seconds."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Busy):
    """As many requests as may are waiting for this model."""

    code = "queue_full"


class InsufficientMemory(Busy):
    """A load that cannot fit even after every permitted eviction. All numbers in bytes, of one device.

    `device` is the one that lacks most: `cpu` for host memory, else a GPU (`CUDA0`).
    """

    code = "insufficient_memory"

    def __init__(
        self,
        *,
        model: str,
        needed_bytes: int,
        free_bytes: int,
        reserved_bytes: int,
        device: str = "cpu",
        retry_after_s: float = 5.0,
    ) -> None:
        super().__init__(
            f"loading {model} needs {_mib(needed_bytes)} of {'memory' if device == 'cpu' else device}; "
            f"{_mib(free_bytes)} can be had and {_mib(reserved_bytes)} are held by models in use",
            retry_after_s=retry_after_s,
        )
        self.device = device
        self.model = model
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.reserved_bytes = reserved_bytes


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


class LoadingFailed(Busy):
    """The model could not be loaded."""

    code = "loading_failed"


class BreakerOpen(Busy):
    """Workers of the model keep crashing; it is left alone for a while, then tried with one request."""

    code = "breaker_open"

    def __init__(self, *, model: str, retry_after_s: float) -> None:
        super().__init__(
            f"workers of {model} keep crashing; it is tried again in {retry_after_s:.0f} s",
            retry_after_s=retry_after_s,
        )
        self.model = model


class Draining(Busy):
    """The daemon is shutting down and takes no new work."""

    code = "draining"

    def __init__(self) -> None:
        super().__init__("the daemon is shutting down", retry_after_s=5.0)


class Unavailable(Busy):
    """The part that would answer has ended or restarts."""


class LoadTimeout(RunnerError):
    """Loading took longer than it may."""

    code = "load_timeout"


class WorkerCrashed(RunnerError):
    """A worker died under this request. `cause` is `signal SIGSEGV`, `exit code 3` or `protocol fault: …`."""

    code = "worker_crashed"

    def __init__(self, *, model: str, cause: str) -> None:
        super().__init__(f"the worker of {model} ended unexpectedly ({cause})")
        self.model = model
        self.cause = cause


class ReaderTooSlow(RunnerError):
    """More text than the limit waited for a reader; its sequence was cancelled."""

    code = "reader_too_slow"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the answer was not read: more than {limit_bytes} bytes of it were waiting")
        self.limit_bytes = limit_bytes


class ProtocolFault(RunnerError):
    """Bytes on the channel between daemon and worker that are not of the protocol.

    `preceding` are the messages that came whole before the fault in the same piece of input.
    """

    code = "protocol_fault"

    def __init__(self, reason: str, *, preceding: tuple[object, ...] = ()) -> None:
        super().__init__(f"protocol fault: {reason}")
        self.reason = reason
        self.preceding = preceding


class EngineFailed(RunnerError):
    """A forward pass or its result was unusable for one request, in a worker that lives on."""

    code = "engine_failed"


class StoreError(RunnerError):
    """The disk refused something; the message says what."""

    code = "store_error"


class DiskFull(StoreError):
    """There is no room left on the store's disk; nothing half-written is visible."""

    code = "disk_full"


class StoreDamaged(StoreError):
    """What lies in the store is not what its name says."""

    code = "store_damaged"


class RegistryError(RunnerError):
    """A registry answered what it must not, or the way to it is closed; trying again would not help.

    `registry` is what the user named. The message holds no address beyond host names and no answer's body.
    """

    code = "registry_error"

    def __init__(self, registry: str, message: str) -> None:
        super().__init__(f"{registry}: {message}")
        self.registry = registry


class RegistryUnauthorized(RegistryError):
    """The registry wants credentials, or does not accept those it got."""

    code = "registry_unauthorized"


class RegistryDenied(RegistryError):
    """The registry knows who asks and refuses."""

    code = "registry_denied"


class RemoteModelNotFound(RegistryError):
    """The registry has no model or content of this name."""

    code = "remote_model_not_found"


class RegistryUnavailable(RegistryError):
    """The registry could not be reached, was too slow, broke off or is overloaded: worth another attempt.

    `retry_after_s` is what the registry asked for, None when it did not; nobody waits for more than a minute.
    """

    code = "registry_unavailable"

    def __init__(self, registry: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(registry, message)
        self.retry_after_s = retry_after_s


class RangeRefused(RegistryError):
    """The registry did not answer with exactly the range that was asked for; start again without one."""

    code = "registry_range_refused"


class AddressRefused(RegistryError):
    """An answer named a host that must not be reached, or would have had a secret sent in the clear."""

    code = "registry_address_refused"


class UnsupportedArtifact(RegistryError):
    """What the registry has under this name is no model of a format that is read here."""

    code = "unsupported_artifact"


class TransferAborted(RunnerError):
    """The transfer was given up by those who wanted it; raised in its threads only."""

    code = "transfer_aborted"


class CredentialsFailed(RunnerError):
    """A login file or a credential helper could not be used; the message names it."""

    code = "credentials_failed"


class StartRefused(RunnerError):
    """The daemon (or a command) must not start; the message says what to change."""

    code = "start_refused"
