"""What the scheduler would do, and why it did what it did; the control API sends these as JSON.

Values only, of plain types. Times are seconds before or after the moment of the answer, sizes bytes.
"""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class PlannedPart:
    """`part` of a footprint: `weights`, `KV cache`, …"""

    part: str
    size_bytes: int


@attrs.frozen(kw_only=True)
class PlannedDevice:
    """What the load needs of one device, beside what there is.

    `free_bytes` is negative where the budget shrank below what is reserved. `leaving_bytes` are held by
    processes that end; `missing_bytes` is what those and the free ones do not cover. `parts` sum up to
    `needed_bytes` where they are known.
    """

    device: str
    needed_bytes: int
    free_bytes: int
    leaving_bytes: int
    reserved_bytes: int
    budget_bytes: int
    missing_bytes: int
    parts: tuple[PlannedPart, ...] = ()


@attrs.frozen(kw_only=True)
class PlannedVictim:
    """A model that would go. `when` says when: at once, or when its requests have ended.

    `cost_s` is what its absence is expected to cost, `reload_s` what loading it again would take.
    """

    model: str
    model_id: str
    when: str
    freed_bytes: int
    cost_s: float
    reload_s: float
    idle_s: float | None
    running: int
    waiting: int


@attrs.frozen(kw_only=True)
class PlannedObstacle:
    """A model that stays, and why. `stays_for_s` is how long at most, None for as long as it is so."""

    model: str
    model_id: str
    why: str
    held_bytes: int
    running: int
    waiting: int
    stays_for_s: float | None


@attrs.frozen(kw_only=True)
class PlanReport:
    """What a request for this model would meet now. Nothing was done.

    `verdict` is one of `ready` (served at once), `in_line`, `load` (it fits), `evict` (idle models go for
    it), `swap` (models in use give way first), `wait` (for models in use, or for processes that end) and
    `refuse`. `why` says it in a sentence. `position` counts from 1 in the line of the model, or of loads that
    wait for room; 0 where nobody waits. `expected_wait_s` None: nobody can tell. `context_size` in tokens;
    `basis` is what the sizes rest on.
    """

    model: str
    model_id: str
    state: str
    verdict: str
    why: str
    context_size: int
    basis: str
    devices: tuple[PlannedDevice, ...]
    victims: tuple[PlannedVictim, ...]
    obstacles: tuple[PlannedObstacle, ...]
    expected_load_s: float
    is_load_measured: bool
    expected_wait_s: float | None
    position: int
    waiting: int
    swap_wait_s: float


@attrs.frozen(kw_only=True)
class ToldDecision:
    """One decision of the scheduler. `others` are models that it was weighed against; `times` counts how
    often it was made in a row, the last time `ago_s` before."""

    ago_s: float
    model: str
    action: str
    why: str
    numbers: dict[str, float]
    others: tuple[str, ...]
    times: int


@attrs.frozen(kw_only=True)
class ToldWait:
    """So long the request waited while its model was in this state."""

    state: str
    waited_s: float


@attrs.frozen(kw_only=True)
class ToldRequest:
    """One request for a model, as the scheduler saw it.

    `outcome` is `waiting`, `running`, `ended`, `refused` or `left`. `ahead` waited for the model before it.
    `ran_s` is how long it has used the model, None when it never did. `label` is what the client called it.
    """

    request_id: str
    label: str | None
    model: str
    model_id: str
    asked_ago_s: float
    outcome: str
    ahead: int
    waited_s: float
    waits: tuple[ToldWait, ...]
    ran_s: float | None
    refusal: str | None


@attrs.frozen(kw_only=True)
class WhyReport:
    """What is known about a model or a request, oldest first; of a model both decisions and requests.

    `state` is that of the model now, `not loaded` where it has none. Decisions about a request are those
    about its model from when it asked until it was answered.
    """

    model: str
    model_id: str
    state: str
    decisions: tuple[ToldDecision, ...]
    requests: tuple[ToldRequest, ...]
