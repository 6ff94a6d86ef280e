"""How long things take here: loads, uses and ends of workers, measured and smoothed.

What is measured gives victims their cost, waits their bounds, and refusals their Retry-After. A model that
was not seen yet is estimated from its size and from how the estimates for others turned out. Bounded; values
only. Read on in `swap.py` and `core.py`.
"""

from __future__ import annotations

from collections import OrderedDict

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.oci.digest import Digest

FIRST_LOAD_S = 1.0
"""A guess for spawn, import and context; a spare worker saves a part of it."""
BYTES_PER_S = 1e9
"""A guess for reading weights: between a disk (0.5) and pages that are in memory already (several)."""
FIRST_USE_S = 5.0
FIRST_STOP_S = 0.5
RETRY_AFTER_MIN_S = 1.0  # Retry-After is written in whole seconds, and 0 would invite a busy loop
RETRY_AFTER_MAX_S = 300.0
_SAFETY = 2.0  # deviations above the mean; TCP's timer takes 4, but a late swap is no lost packet


@attrs.define
class Smoothed:
    """A moving mean and mean deviation; gains as in TCP's timer, a little faster (RFC 6298: 1/8 and 1/4)."""

    mean: float
    deviation: float = 0.0
    is_measured: bool = False

    def add(self, value: float) -> None:
        if not self.is_measured:  # what stood here was a guess
            self.mean, self.deviation, self.is_measured = value, value / 2, True
            return
        self.deviation += (abs(value - self.mean) - self.deviation) / 4
        self.mean += (value - self.mean) / 4

    @property
    def cautious(self) -> float:
        """What most values stay below."""
        return self.mean + _SAFETY * self.deviation


@attrs.define
class _ModelPace:
    load_s: Smoothed | None = None
    use_s: Smoothed | None = None
    returns_s: Smoothed | None = None
    idle_since_s: float | None = None


@attrs.define
class Pace:
    """Seconds per model, of the `limit` models that were measured last, and over all."""

    limit: int = 256
    _models: OrderedDict[Digest, _ModelPace] = attrs.field(factory=OrderedDict, init=False)
    _load_ratio: Smoothed = attrs.field(factory=lambda: Smoothed(1.0), init=False)
    _use_s: Smoothed = attrs.field(factory=lambda: Smoothed(FIRST_USE_S), init=False)
    _stop_s: Smoothed = attrs.field(factory=lambda: Smoothed(FIRST_STOP_S), init=False)

    # what happened

    def load_ended(self, model_id: Digest, footprint: DeviceBytes, took_s: float) -> None:
        self._load_ratio.add(took_s / _guessed_load_s(footprint))
        model = self._of(model_id)
        model.load_s = model.load_s or Smoothed(took_s)
        model.load_s.add(took_s)

    def use_ended(self, model_id: Digest, took_s: float) -> None:
        self._use_s.add(took_s)
        model = self._of(model_id)
        model.use_s = model.use_s or Smoothed(took_s)
        model.use_s.add(took_s)

    def became_idle(self, model_id: Digest, now_s: float) -> None:
        """The last of its requests has ended."""
        self._of(model_id).idle_since_s = now_s

    def wanted(self, model_id: Digest, now_s: float) -> None:
        """A request came; the first one after idle time tells how soon they return."""
        model = self._models.get(model_id)
        if model is None or model.idle_since_s is None:
            return
        gap_s, model.idle_since_s = now_s - model.idle_since_s, None
        model.returns_s = model.returns_s or Smoothed(gap_s)
        model.returns_s.add(gap_s)

    def stop_ended(self, took_s: float) -> None:
        self._stop_s.add(took_s)

    # what to expect

    def is_load_measured(self, model_id: Digest) -> bool:
        model = self._models.get(model_id)
        return model is not None and model.load_s is not None

    def load_s(self, model_id: Digest, footprint: DeviceBytes) -> float:
        """From spawn to ready."""
        model = self._models.get(model_id)
        if model is not None and model.load_s is not None:
            return model.load_s.mean
        return _guessed_load_s(footprint) * self._load_ratio.mean

    def use_s(self, model_id: Digest) -> float:
        """How long one request keeps its place."""
        return self._use_of(model_id).mean

    def drain_s(self, model_id: Digest) -> float:
        """Until the requests of this moment have ended, cautiously."""
        return self._use_of(model_id).cautious

    def returns_s(self, model_id: Digest) -> float | None:
        """How soon after the last request the next one comes, cautiously; None where it never did."""
        model = self._models.get(model_id)
        return None if model is None or model.returns_s is None else model.returns_s.cautious

    @property
    def stop_s(self) -> float:
        """From asking a worker to end until its memory is free."""
        return self._stop_s.mean

    def _use_of(self, model_id: Digest) -> Smoothed:
        model = self._models.get(model_id)
        return self._use_s if model is None or model.use_s is None else model.use_s

    def _of(self, model_id: Digest) -> _ModelPace:
        model = self._models.setdefault(model_id, _ModelPace())
        self._models.move_to_end(model_id)
        if len(self._models) > self.limit:
            self._models.popitem(last=False)
        return model


def retry_after_s(expected_s: float) -> float:
    """What to tell a client that was refused: the expectation, within bounds."""
    return min(max(expected_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)


def _guessed_load_s(footprint: DeviceBytes) -> float:
    return FIRST_LOAD_S + footprint.total_bytes / BYTES_PER_S
