"""Models that crash the engine while they load, and are not loaded again (L06). Pure.

A model is known by its digest and the engine by its version, so new content and a new engine are free of the
past. A command frees it as well. What is known outlives restarts: whoever runs this writes `records` down
after every change, and begins with them.

Imports domain values and digests. Read on in `core.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from runner.domain.quarantine import FailedLoads
from runner.oci.digest import Digest

CRASHES_MAX = 2
"""So many crashes while loading, without a load that succeeded in between, and a model is quarantined."""
MODELS_MAX = 256
_CAUSE_MAX = 200


@attrs.define
class LoadQuarantine:
    """What is known of loads that crashed under `engine`; of other engines it is kept and ignored."""

    engine: str
    _records: dict[tuple[str, str], FailedLoads] = attrs.field(factory=dict, init=False)
    """By model id and engine; the latest is last."""

    @classmethod
    def remembering(cls, engine: str, records: Iterable[FailedLoads]) -> LoadQuarantine:
        quarantine = cls(engine)
        for record in records:
            quarantine._keep(record)
        return quarantine

    def quarantined(self, model_id: Digest) -> FailedLoads | None:
        """The record of a model that must not be loaded."""
        record = self._records.get((str(model_id), self.engine))
        return record if record is not None and self.holds(record) else None

    def holds(self, record: FailedLoads) -> bool:
        """Whether what the record tells is enough, under this engine."""
        return record.engine == self.engine and record.crashes >= CRASHES_MAX

    def crashed(self, model_id: Digest, name: str, cause: str) -> FailedLoads:
        """A worker died while it loaded this model. Returns what is known of it now."""
        before = self._records.pop((str(model_id), self.engine), None)
        record = FailedLoads(
            model_id=str(model_id),
            model=name,
            engine=self.engine,
            crashes=before.crashes + 1 if before is not None else 1,
            cause=cause[:_CAUSE_MAX],
        )
        self._keep(record)
        return record

    def lift(self, model_id: Digest) -> FailedLoads | None:
        """Loaded, or freed by command: forget its crashes. What was known, if anything."""
        return self._records.pop((str(model_id), self.engine), None)

    def records(self) -> tuple[FailedLoads, ...]:
        """Everything to be remembered, the latest last."""
        return tuple(self._records.values())

    def _keep(self, record: FailedLoads) -> None:
        self._records[record.model_id, record.engine] = record
        if len(self._records) > MODELS_MAX:
            del self._records[next(iter(self._records))]
