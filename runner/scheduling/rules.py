"""The numbers behind the scheduler's decisions. Values only. Read on in `core.py`."""

from __future__ import annotations

import attrs

from runner.scheduling.backoff import BackoffRules

_AT_LEAST_ONE = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class SchedulingRules:
    """`waiters_per_model` may stand in line for one model, while `leases_per_model` use it at the same time.

    `room_wait_s` bounds how long a request waits for models in use to make room; `overtaking_s` how long
    later loads may pass one that does not fit yet.
    """

    waiters_per_model: int = attrs.field(default=64, validator=_AT_LEAST_ONE)
    leases_per_model: int = attrs.field(default=8, validator=_AT_LEAST_ONE)
    default_keep_alive_s: float = 300.0
    room_wait_s: float = 120.0
    overtaking_s: float = 10.0
    decisions_kept: int = attrs.field(default=512, validator=_AT_LEAST_ONE)
    backoff: BackoffRules = attrs.field(factory=BackoffRules)
