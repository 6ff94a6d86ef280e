"""The bytes given away on every device: who holds how much, and how much may be given in all.

Imports the error tree and amounts. Read on in `core.py`.
"""

from __future__ import annotations

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.errors import RunnerError


class OverBudget(RunnerError):
    """A reservation beyond the budget: a fault of ours. Nothing has changed when it is raised."""

    def __init__(self, needed: DeviceBytes, free: DeviceBytes) -> None:
        super().__init__(f"{needed} cannot be reserved, {free} is free")
        self.needed = needed
        self.free = free


@attrs.define
class Ledger:
    """Reservations by load id; together above the budget of a device only after that budget shrank."""

    budget: DeviceBytes
    _reservations: dict[int, DeviceBytes] = attrs.field(factory=dict, init=False)
    _reserved: DeviceBytes = attrs.field(factory=DeviceBytes, init=False)

    @property
    def reserved(self) -> DeviceBytes:
        return self._reserved

    @property
    def free(self) -> DeviceBytes:
        """Negative on a device whose budget is below what is reserved there."""
        return self.budget - self._reserved

    def of(self, load_id: int) -> DeviceBytes:
        """What this load holds, nothing when it has no reservation."""
        return self._reservations.get(load_id, DeviceBytes())

    def reserve(self, load_id: int, needed: DeviceBytes) -> None:
        """Raises OverBudget when it does not fit on one of its devices."""
        assert load_id not in self._reservations and needed == needed.positive()
        if not needed.fits_in(self.free):
            raise OverBudget(needed, self.free)
        self._reservations[load_id] = needed
        self._reserved += needed

    def give_back(self, load_id: int) -> None:
        """Exactly once per reservation; KeyError otherwise."""
        self._reserved -= self._reservations.pop(load_id)

    def __repr__(self) -> str:
        return f"<Ledger {self._reserved} of {self.budget} by {len(self._reservations)} loads>"
