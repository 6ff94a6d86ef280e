"""How soon a model whose worker crashed may start again. Values and a bounded memory of crashes; no clock.

Several crashes in a short time are the business of `breaker.py`. Imports digests only. Read on in
`protection.py`.
"""

from __future__ import annotations

import attrs

from runner.oci.digest import Digest


@attrs.frozen(kw_only=True)
class BackoffRules:
    """The n-th crash in a row delays the next start by `first_s` x 2^(n-1), at most `longest_s`.

    Jitter adds up to half of that. A model without a crash for `forget_s` starts from the beginning.
    """

    first_s: float = 0.25
    longest_s: float = 30.0
    forget_s: float = 60.0


@attrs.frozen(kw_only=True)
class CrashRecord:
    crashes: int
    last_s: float
    not_before_s: float


def after_crash(rules: BackoffRules, record: CrashRecord | None, now_s: float, jitter: float) -> CrashRecord:
    """The record after one more crash; `jitter` is drawn from [0, 1) by the caller."""
    is_in_a_row = record is not None and now_s - record.last_s < rules.forget_s
    crashes = record.crashes + 1 if record is not None and is_in_a_row else 1
    delay_s = min(rules.first_s * 2.0 ** min(crashes - 1, 30), rules.longest_s)
    return CrashRecord(crashes=crashes, last_s=now_s, not_before_s=now_s + delay_s * (1 + jitter / 2))


@attrs.define
class CrashLog:
    """The last crash of each model, of the `limit` models that crashed last."""

    rules: BackoffRules
    limit: int = 256
    _records: dict[Digest, CrashRecord] = attrs.field(factory=dict, init=False)

    def add(self, model_id: Digest, now_s: float, jitter: float) -> CrashRecord:
        record = after_crash(self.rules, self._records.pop(model_id, None), now_s, jitter)
        self._records[model_id] = record
        if len(self._records) > self.limit:
            del self._records[next(iter(self._records))]
        return record

    def not_before_s(self, model_id: Digest) -> float:
        """The earliest time of the next start; in the past for a model that has not crashed lately."""
        record = self._records.get(model_id)
        return record.not_before_s if record is not None else float("-inf")
