"""The numbers behind the scheduler's decisions. Values only. Read on in `core.py` and `swap.py`."""

from __future__ import annotations

import attrs

from runner.scheduling.backoff import BackoffRules
from runner.scheduling.breaker import BreakerRules

_AT_LEAST_ONE = attrs.validators.ge(1)
_NOT_NEGATIVE = attrs.validators.ge(0.0)


@attrs.frozen(kw_only=True)
class SchedulingRules:
    """Of one model `leases_per_model` requests run at the same time, and `waiters_per_model` more may wait.

    `swap_wait_s`: so long may requests for a loaded model keep those for another one waiting.
    `min_residency_s`: so long a model with requests stays after its load. `linger_s`: so long at most an idle
    one is kept from those who want its room because its next request is due any moment. `room_wait_s` bounds
    how long a request waits for models in use to make room; `overtaking_s` how long later loads may pass one
    that does not fit yet. Requests for an annex hold a lease of its model meanwhile, and wait `annex_wait_s`
    at most. After `idle_scale_s` without use a model is thought half as likely to be wanted soon.
    """

    waiters_per_model: int = attrs.field(default=64, validator=_AT_LEAST_ONE)
    leases_per_model: int = attrs.field(default=8, validator=_AT_LEAST_ONE)
    default_keep_alive_s: float = 300.0
    swap_wait_s: float = attrs.field(default=30.0, validator=_NOT_NEGATIVE)
    min_residency_s: float = attrs.field(default=5.0, validator=_NOT_NEGATIVE)
    linger_s: float = attrs.field(default=1.0, validator=_NOT_NEGATIVE)
    room_wait_s: float = 120.0
    annex_wait_s: float = 10.0
    overtaking_s: float = 10.0
    idle_scale_s: float = 60.0
    decisions_kept: int = attrs.field(default=512, validator=_AT_LEAST_ONE)
    requests_kept: int = attrs.field(default=1024, validator=_AT_LEAST_ONE)
    backoff: BackoffRules = attrs.field(factory=BackoffRules)
    breaker: BreakerRules = attrs.field(factory=BreakerRules)
