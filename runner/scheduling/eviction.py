"""The cheapest set of models that makes enough room. Silent functions of values.

Imports amounts. Read on in `room.py`, which asks for them, and in `docs/concepts/scheduling.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import attrs

from runner.domain.device_bytes import DeviceBytes

EXACT_UP_TO = 12
"""Candidates of which every set is looked at, in the worst case 4,096; more are chosen one by one."""

LEAST_RELOAD_S = 0.01
"""Below this loads count as equally quick, and the time without use decides."""


@attrs.frozen(kw_only=True)
class Candidate:
    """A model that may go, and the seconds that its absence is expected to cost; they are positive."""

    load_id: int
    size: DeviceBytes
    cost_s: float


def absence_cost_s(*, reload_s: float, requests: int, idle_s: float, idle_scale_s: float) -> float:
    """What the absence of a model is expected to cost, in seconds of waiting.

    That is its reload for every request it has now; for an idle one, its reload times the chance of being
    wanted soon, which falls with the time it has not been: by half after `idle_scale_s`, to a third after
    twice that. (Times between uses have heavy tails, so an exponential would forget too fast.)
    """
    reload_s = max(reload_s, LEAST_RELOAD_S)
    if requests:
        return reload_s * requests
    return reload_s * idle_scale_s / (idle_scale_s + max(0.0, idle_s))


def choose_victims(
    candidates: Sequence[Candidate], shortage: DeviceBytes, *, must: Sequence[int] = ()
) -> tuple[Candidate, ...]:
    """The set of least cost whose sizes cover the shortage on every device; empty when no set does.

    Of equally cheap sets the one that frees less goes, and never more than needed. `must` are load ids that
    are part of it in any case.
    """
    musts = [one for one in candidates if one.load_id in must]
    if len(musts) < len(must):
        return ()
    missing = shortage.missing_in(_sum(musts))
    useful = [one for one in candidates if one.load_id not in must and _helps(one, missing)]
    if not missing:
        return tuple(musts)
    if not missing.fits_in(_sum(useful)):
        return ()
    useful.sort(key=lambda one: (one.cost_s, one.size.total_bytes, one.load_id))
    chosen = _exactly(useful, missing) if len(useful) <= EXACT_UP_TO else _one_by_one(useful, missing)
    return (*musts, *chosen)


def _exactly(candidates: Sequence[Candidate], missing: DeviceBytes) -> list[Candidate]:
    """Branch and bound over all sets, the cheaper candidates first."""
    rests = [_sum(candidates[index:]) for index in range(len(candidates) + 1)]
    best: list[Candidate] = list(candidates)
    best_rank = _rank(best)

    def extend(index: int, chosen: list[Candidate], still_missing: DeviceBytes) -> None:
        nonlocal best, best_rank
        if not still_missing:
            if _rank(chosen) < best_rank:
                best, best_rank = chosen, _rank(chosen)
            return
        if not still_missing.fits_in(rests[index]) or _rank(chosen) >= best_rank:
            return
        one = candidates[index]
        if _helps(one, still_missing):
            extend(index + 1, [*chosen, one], still_missing.missing_in(one.size))
        extend(index + 1, chosen, still_missing)

    extend(0, [], missing)
    return best


def _one_by_one(candidates: Sequence[Candidate], missing: DeviceBytes) -> list[Candidate]:
    """By cost per useful byte; then those without whom the others suffice are spared, the dearest first."""
    chosen: list[Candidate] = []
    for one in sorted(candidates, key=lambda one: (one.cost_s / _useful_bytes(one, missing), one.load_id)):
        if missing.fits_in(_sum(chosen)):
            break
        chosen.append(one)
    for one in sorted(chosen, key=lambda one: -one.cost_s):
        others = [other for other in chosen if other is not one]
        if missing.fits_in(_sum(others)):
            chosen = others
    return chosen


def _rank(chosen: Sequence[Candidate]) -> tuple[float, int]:
    return sum(one.cost_s for one in chosen), sum(one.size.total_bytes for one in chosen)


def _helps(candidate: Candidate, missing: DeviceBytes) -> bool:
    return any(candidate.size[device] > 0 for device in missing.devices)


def _useful_bytes(candidate: Candidate, missing: DeviceBytes) -> int:
    return sum(min(candidate.size[device], missing[device]) for device in missing.devices)


def _sum(candidates: Sequence[Candidate]) -> DeviceBytes:
    return reduce(add, (one.size for one in candidates), DeviceBytes())
