"""What routes know of the daemon: its handles and what may be asked of the daemon itself.

Apart from `runner/api/app.py`, which puts the dialects together, so that a dialect can be imported without
the others. Imports domain values and, for their types only, actor handles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from runner.domain.settings import USUAL, SettingsLayer
from runner.domain.status import CrashReport, DaemonStatus, VersionInfo

if TYPE_CHECKING:
    from actors.puller import PullerHandle
    from actors.remote import RemoteModels
    from actors.scheduler import SchedulerHandle
    from actors.store_handle import StoreHandle


class DaemonControl(Protocol):
    """What routes may ask of the daemon itself."""

    @property
    def is_draining(self) -> bool: ...

    def status(self) -> DaemonStatus: ...

    def version(self) -> VersionInfo: ...

    def crashes(self, model_id: str | None = None) -> tuple[CrashReport, ...]:
        """The latest deaths of workers, the latest first."""
        ...

    async def bound_memory(self, size_bytes: int | None) -> None:
        """Let models take at most so much of host memory, None for no bound; returns when it holds."""
        ...

    def request_shutdown(self) -> None:
        """Begin the ordered shutdown, after the answer to this request has left."""
        ...


@attrs.frozen(kw_only=True)
class AppContext:
    """Everything a route may use. `allowed_origins`: web origins that may read answers, none by default.

    `default_context_size` is what a sequence may have of a model whose package does not say, in tokens.
    `setting_layers` are what daemon and program say of all models.
    """

    store: StoreHandle
    puller: PullerHandle
    scheduler: SchedulerHandle
    daemon: DaemonControl
    remote: RemoteModels
    allowed_origins: frozenset[str] = frozenset()
    default_context_size: int = 8192
    setting_layers: tuple[SettingsLayer, ...] = (USUAL,)
