"""What the daemon may take of the machine: memory for models, disk for what is saved of their caches.

Imports the settings and the parts that keep to them. Used by `runner/daemon.py`.
"""

from __future__ import annotations

from actors.budget import BudgetMeter
from actors.saved_states import SavedStates
from runner.config import Settings
from runner.domain.device_bytes import HOST_MEMORY
from runner.notices import log_states
from runner.oci.digest import Digest
from runner.store.layout import StoreLayout


def budget_meter(settings: Settings) -> BudgetMeter:
    """What is configured bounds host memory; GPUs are measured."""
    cap, reserve = settings.memory_budget_bytes, settings.memory_reserve_bytes
    return BudgetMeter(
        caps={} if cap is None else {HOST_MEMORY: cap},
        reserves={} if reserve is None else {HOST_MEMORY: reserve},
    )


def saved_states(settings: Settings) -> SavedStates:
    """Beside the store, whose lock keeps other daemons from it; for weights that are in the store."""
    layout = StoreLayout(settings.store)
    return SavedStates(
        settings.store.with_name(f"{settings.store.name}-cache"),
        limit_bytes=settings.cache_disk_bytes,
        keep_free_bytes=settings.disk_reserve_bytes,
        is_wanted=lambda digest: layout.blob(Digest.parse(digest)).exists(),
        report=log_states,
    )
