"""The Quart application: what routes are given, and how the dialects are put together.

Owns `AppContext`, the only thing routes know of the daemon, and the two probes. May import the dialects,
actor handles and domain values. How requests get here: `runner.api.server`; what may enter:
`runner.api.admission`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs
from quart_trio import QuartTrio

from runner.api.errors import install_error_handlers
from runner.domain.status import DaemonStatus, VersionInfo

if TYPE_CHECKING:
    from actors.puller import PullerHandle
    from actors.scheduler import SchedulerHandle
    from actors.store import StoreHandle


class DaemonControl(Protocol):
    """What routes may ask of the daemon itself. Never waits."""

    @property
    def is_draining(self) -> bool: ...

    def status(self) -> DaemonStatus: ...

    def version(self) -> VersionInfo: ...

    def request_shutdown(self) -> None:
        """Begin the ordered shutdown, after the answer to this request has left."""
        ...


@attrs.frozen(kw_only=True)
class AppContext:
    """Everything a route may use. `allowed_origins`: web origins that may read answers, none by default."""

    store: StoreHandle
    puller: PullerHandle
    scheduler: SchedulerHandle
    daemon: DaemonControl
    allowed_origins: frozenset[str] = frozenset()


def build_app(context: AppContext) -> QuartTrio:
    """The application with every dialect."""
    # The dialects know AppContext, so they can only be imported once this module is.
    from runner.api.control import routes as control
    from runner.api.openai import routes as openai

    app = bare_app()
    app.register_blueprint(control.blueprint(context))
    app.register_blueprint(openai.blueprint(context))
    return app


def bare_app() -> QuartTrio:
    """An application without routes: errors in our shape, limits left to the serving layer."""
    app = QuartTrio("runner", static_folder=None, template_folder=None)
    app.config.update(
        PROPAGATE_EXCEPTIONS=False,  # also when QUART_DEBUG is set: a stack never reaches a client
        MAX_CONTENT_LENGTH=None,  # the serving layer counts while bytes arrive
        BODY_TIMEOUT=None,  # it also demands progress, which suits a slow but honest upload
        RESPONSE_TIMEOUT=None,  # would cut streams off in silence
    )
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # a redirect would repair `//` in a model name
    install_error_handlers(app)
    return app
