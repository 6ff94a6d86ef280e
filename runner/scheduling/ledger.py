"""The bytes given away on one device: who holds how much, and how much may be given in all.

One ledger per device; host memory is the only one yet. Imports only the error tree. Read on in `core.py`.
"""

from __future__ import annotations

import attrs

from runner.errors import RunnerError


class OverBudget(RunnerError):
    """A reservation beyond the budget: a fault of ours. Nothing has changed when it is raised."""

    def __init__(self, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(f"{needed_bytes} bytes cannot be reserved, {free_bytes} are free")
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


@attrs.define
class Ledger:
    """Reservations by load id, in bytes; together above the budget only after the budget shrank."""

    budget_bytes: int
    _reserved: dict[int, int] = attrs.field(factory=dict, init=False)
    _reserved_bytes: int = attrs.field(default=0, init=False)

    @property
    def reserved_bytes(self) -> int:
        return self._reserved_bytes

    @property
    def free_bytes(self) -> int:
        """Negative while the budget is below what is reserved."""
        return self.budget_bytes - self._reserved_bytes

    def of(self, load_id: int) -> int:
        """What this load holds, 0 when nothing."""
        return self._reserved.get(load_id, 0)

    def reserve(self, load_id: int, size_bytes: int) -> None:
        """Raises OverBudget when it does not fit."""
        assert load_id not in self._reserved and size_bytes >= 0
        if size_bytes > self.free_bytes:
            raise OverBudget(size_bytes, self.free_bytes)
        self._reserved[load_id] = size_bytes
        self._reserved_bytes += size_bytes

    def give_back(self, load_id: int) -> None:
        """Exactly once per reservation; KeyError otherwise."""
        self._reserved_bytes -= self._reserved.pop(load_id)

    def __repr__(self) -> str:
        return f"<Ledger {self._reserved_bytes} of {self.budget_bytes} bytes by {len(self._reserved)} loads>"
