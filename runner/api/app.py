"""The Quart application: how the dialects are put together.

Owns the application and the two probes. May import the dialects; what they are given is
`runner.api.context`. How requests get here: `runner.api.server`; what may enter: `runner.api.admission`.
"""

from __future__ import annotations

from typing import Any, cast

import trio
from quart import ResponseReturnValue
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioRequest, TrioResponse
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from runner.api.body import RequestBody
from runner.api.context import AppContext as AppContext
from runner.api.context import DaemonControl as DaemonControl
from runner.api.control import routes as control
from runner.api.dmr import routes as dmr
from runner.api.errors import install_error_handlers, leading_error, refusal_of, to_response
from runner.api.middleware import install_middleware
from runner.api.openai import routes as openai
from runner.api.streaming import HttpConnection
from runner.errors import Draining


class RunnerRequest(TrioRequest):
    """A request whose body holds its client back until somebody takes it."""

    body_class = RequestBody  # type: ignore[assignment]  # stands in for Quart's without sharing its code


class RunnerApp(QuartTrio):
    """Quart joined to the serving layer."""

    asgi_http_class = HttpConnection
    request_class = RunnerRequest

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Routing does not look at Host, which is checked on TCP and any text on the unix socket."""
        if request is None:
            return None
        return self.url_map.bind(
            "localhost",
            url_scheme=request.scheme,
            default_method=request.method,
            path_info=request.path,
            query_args=request.query_string.decode("ascii"),
        )

    async def handle_user_exception(self, *args: Any) -> HTTPException | ResponseReturnValue:
        """The handler of the one error that decides. A cancelled request is not answered at all.

        The error is the last argument: since 0.23 Quart passes its context first.
        """
        *context, error = args
        if isinstance(error, BaseExceptionGroup):
            cancelled, _ = error.split(trio.Cancelled)
            if cancelled is not None:
                raise cancelled
        decisive = leading_error(error)
        if not isinstance(decisive, Exception):
            raise decisive
        handle: Any = super().handle_user_exception
        return cast(ResponseReturnValue, await handle(*context, decisive))


def build_app(context: AppContext) -> RunnerApp:
    """The application with every dialect and the two probes."""
    app = bare_app(context.allowed_origins)
    _add_probes(app, context.daemon)
    app.register_blueprint(control.blueprint(context))
    app.register_blueprint(openai.blueprint(context))
    app.register_blueprint(dmr.blueprint(context))
    return app


def bare_app(allowed_origins: frozenset[str] = frozenset()) -> RunnerApp:
    """An application without routes: errors in our shape, limits left to the serving layer."""
    app = RunnerApp("runner", static_folder=None, template_folder=None)
    app.config.update(
        PROPAGATE_EXCEPTIONS=False,  # also when QUART_DEBUG is set: a stack never reaches a client
        MAX_CONTENT_LENGTH=None,  # the serving layer counts while bytes arrive
        BODY_TIMEOUT=None,  # it also demands progress, which suits a slow but honest upload
        RESPONSE_TIMEOUT=None,  # would cut streams off in silence
    )
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # a redirect would repair `//` in a model name
    install_error_handlers(app)
    install_middleware(app, allowed_origins)
    return app


def _add_probes(app: QuartTrio, daemon: DaemonControl) -> None:
    """`/health`: the event loop turns; `/ready`: new work is taken. Neither asks an actor (L15)."""

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> TrioResponse | dict[str, str]:
        if daemon.is_draining:
            return to_response(refusal_of(Draining()))
        return {"status": "ready"}
