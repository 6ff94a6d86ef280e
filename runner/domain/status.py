"""Snapshots people and programs look at; the control API sends them as JSON with these field names.

Values only, plain types only (str, int, float, bool, None, tuples of such values).
"""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class EngineMeters:
    """What an engine does, for `ps --verbose`.

    Of its last step: `batch_prefill_tokens` and `batch_decode_tokens`, the rows of its forward pass, how long
    it took (`step_s`), and how long of that in the engine's own code (`computing_s`). Of this moment: cells,
    and tokens of prefixes in host memory. Since it was loaded: steps, the tokens of all, the sums of both
    times; preemptions; prompts of which something was in cells, the tokens of these that were; as in
    `runner.domain.engine.EngineCounts` the tokens that were saved and restored, and by reason (`CacheMiss`)
    the prompts of which nothing was in cells.
    """

    batch_prefill_tokens: int
    batch_decode_tokens: int
    step_s: float
    computing_s: float
    cells_used: int
    cells_retained: int
    cells_free: int
    host_tokens: int
    steps: int
    prefill_tokens: int
    decode_tokens: int
    steps_s: float
    all_computing_s: float
    preemptions: int
    reuse_hits: int
    reused_tokens: int
    saved_tokens: int
    restored_tokens: int
    reuse_misses: dict[str, int]


@attrs.frozen(kw_only=True)
class WorkerStatus:
    """One loaded, loading or stopping model, a row of `ps`.

    `state` is a state of `runner.scheduling.lifecycle`. `expires_in_s` None: in use, loading, or never
    idles out (`keep_alive_s` None as well). Bytes: `reserved_bytes` is what the budget counts,
    `resident_bytes` what the process uses, 0 when unknown. `meters` None: nothing was computed yet.
    """

    model: str
    model_id: str
    state: str
    pid: int | None
    engine: str
    context_size: int
    reserved_bytes: int
    resident_bytes: int
    leases: int
    waiting: int
    running_sequences: int
    waiting_sequences: int
    cells_used: int
    n_cells: int
    host_cells: int
    keep_alive_s: float | None
    expires_in_s: float | None
    loaded_for_s: float | None
    load_s: float | None
    load_progress: float
    meters: EngineMeters | None = None


@attrs.frozen(kw_only=True)
class BudgetStatus:
    """Memory the scheduler may give to models on one device, in bytes."""

    device: str
    budget_bytes: int
    reserved_bytes: int


@attrs.frozen(kw_only=True)
class SchedulerStatus:
    workers: tuple[WorkerStatus, ...] = ()
    budgets: tuple[BudgetStatus, ...] = ()
    is_draining: bool = False


@attrs.frozen(kw_only=True)
class ActorStatus:
    """One supervised child: `restarts` since the daemon started, mailbox numbers of this moment."""

    name: str
    state: str
    restarts: int
    queued: int
    open_asks: int


@attrs.frozen(kw_only=True)
class DaemonStatus:
    """`runner ctl status`. `listeners` are URLs (`http://127.0.0.1:12434`, `unix:/run/…/runner.sock`).

    `idle_exit_in_s` None: the daemon stays until it is stopped.
    """

    version: str
    engine: str
    pid: int
    uptime_s: float
    listeners: tuple[str, ...]
    store: str
    log_file: str | None
    is_draining: bool
    open_connections: int
    idle_exit_in_s: float | None
    budgets: tuple[BudgetStatus, ...]
    actors: tuple[ActorStatus, ...]


@attrs.frozen(kw_only=True)
class VersionInfo:
    version: str
    api: str
    python: str
    engine: str
    engine_version: str


@attrs.frozen(kw_only=True)
class ModelSummary:
    """A row of `ls`. `id` is `sha256:…`; `tags` are full references; sizes in bytes; times Unix seconds.

    `quarantine` tells why the model is not loaded any more; None when nothing speaks against it.
    """

    id: str
    name: str
    tags: tuple[str, ...]
    created_s: int
    size_bytes: int
    format: str
    architecture: str
    quantization: str
    parameters: str
    context_size: int | None
    trained_context_size: int | None
    quarantine: str | None = None


@attrs.frozen(kw_only=True)
class CrashReport:
    """A worker that ended without being asked to.

    `at_s` is Unix time. `kind` is a value of `actors.deaths.DeathKind` (`segmentation_fault`,
    `out_of_memory`, `no_progress`, …), `cause` a phrase. At most one of `exit_code` and `signal` is set; the
    signal may be the daemon's own. `phase` is what the worker was at: `starting`, `loading`, `serving`;
    `lived_s` for how long. `request_ids` were running. `output_tail` is the end of what it printed, cleaned.
    """

    at_s: float
    model: str
    model_id: str
    engine_version: str | None
    pid: int | None
    kind: str
    cause: str
    exit_code: int | None
    signal: str | None
    phase: str
    lived_s: float
    request_ids: tuple[str, ...]
    output_tail: str


@attrs.frozen(kw_only=True)
class UnquarantineReport:
    """`crashes` of loads that were forgotten, 0 when there were none."""

    model: str
    was_quarantined: bool
    crashes: int


@attrs.frozen(kw_only=True)
class LayerSummary:
    media_type: str
    digest: str
    size_bytes: int
    filename: str | None


@attrs.frozen(kw_only=True)
class ModelReport:
    """`inspect`: the summary, the layers, and the header's scalar metadata as text.

    `described_size` is the size of the tensors in the words of the config (`98.12MiB`), empty without any,
    and `described_context_size` the number that stands there, whether or not somebody chose it.
    `labels` are the annotations of the manifest.
    """

    model: ModelSummary
    manifest_digest: str
    config_digest: str
    layers: tuple[LayerSummary, ...]
    licenses: tuple[str, ...]
    metadata: dict[str, str]
    described_size: str = ""
    described_context_size: int | None = None
    labels: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class SettingStatus:
    """One setting of a model: what holds, and who said so, a value of `runner.domain.settings.SettingOrigin`.

    `value` is as it would be set. None: the engine's choice (a seed) or somebody else's text (a template).
    """

    name: str
    value: str | int | float | bool | None
    origin: str


@attrs.frozen(kw_only=True)
class ModelConfiguration:
    """`configure`: every setting of a model, and what changing them did to one that is loaded.

    `was_unloaded`: it was idle, so that its next use loads it anew. `is_outdated`: it is in use, and keeps
    what it was loaded with until it is unloaded.
    """

    model: str
    model_id: str
    settings: tuple[SettingStatus, ...]
    was_unloaded: bool = False
    is_outdated: bool = False


@attrs.frozen(kw_only=True)
class Removal:
    """One thing that `rm` or `untag` did: exactly one of both is set."""

    untagged: str | None = None
    deleted: str | None = None


@attrs.frozen(kw_only=True)
class UnloadReport:
    """Familiar names of models that were unloaded, and of those left alone because requests are running."""

    unloaded: tuple[str, ...]
    in_use: tuple[str, ...]


@attrs.frozen(kw_only=True)
class UploadedBlob:
    digest: str
    size_bytes: int
