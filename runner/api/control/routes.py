"""The control API over HTTP: what `runner ctl` and dashboards ask of a daemon.

Reading is GET and changes nothing (N06). Errors leave in OpenAI's envelope, as everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse

from runner.api.bodies import parsed_body
from runner.api.control import configuring, convert, explaining, schema
from runner.api.control.archives import add_archive_routes
from runner.api.control.prompts import add_prompt_routes
from runner.api.control.transfers import add_disk_routes, add_transfer_routes
from runner.errors import FieldFault, InvalidParameter, InvalidReference, ModelNotFound
from runner.oci.digest import Digest
from runner.oci.reference import ModelName

if TYPE_CHECKING:
    from runner.api.context import AppContext

PREFIX: Final = "/control/v1"
DIGEST_HEADER: Final = "X-Content-Digest"

_BOOLEANS: Final = {"": True, "1": True, "true": True, "0": False, "false": False}


def blueprint(context: AppContext) -> Blueprint:
    """Every control route."""
    routes = Blueprint("control", __name__, url_prefix=PREFIX)
    _add_status_routes(routes, context)
    _add_model_routes(routes, context)
    _add_configuration_routes(routes, context)
    _add_content_routes(routes, context)
    _add_worker_routes(routes, context)
    _add_explaining_routes(routes, context)
    add_prompt_routes(routes, context)
    add_archive_routes(routes, context)
    add_transfer_routes(routes, context)
    add_disk_routes(routes, context)
    return routes


def _add_status_routes(routes: Blueprint, context: AppContext) -> None:
    @routes.get("/version")
    async def version() -> TrioResponse:
        return _answer(context.daemon.version())

    @routes.get("/status")
    async def status() -> TrioResponse:
        return _answer(context.daemon.status())

    @routes.get("/ps")
    async def ps() -> TrioResponse:
        return _answer(context.scheduler.snapshot())

    @routes.get("/crashes")
    async def crashes() -> TrioResponse:
        """`?model=NAME` asks for one; a model that has gone is known by its digest."""
        return _answer(context.daemon.crashes(await _model_id_query(context)))

    @routes.post("/shutdown")
    async def shutdown() -> TrioResponse:
        await parsed_body(schema.parse_nothing)
        context.daemon.request_shutdown()
        return _answer({}, status=202)


def _add_model_routes(routes: Blueprint, context: AppContext) -> None:
    @routes.get("/models")
    async def list_models() -> TrioResponse:
        quarantined = context.scheduler.quarantined()
        return _answer([convert.model_summary(model, quarantined) for model in await context.store.list()])

    @routes.get("/models/<path:name>")
    async def inspect_model(name: str) -> TrioResponse:
        report = await context.store.inspect(ModelName.parse(name))
        return _answer(convert.with_quarantine(report, context.scheduler.quarantined()))

    @routes.delete("/models/<path:name>")
    async def remove_model(name: str) -> TrioResponse:
        force = _boolean_query("force")
        return _answer(await context.store.remove(ModelName.parse(name), force=force))

    @routes.post("/tag")
    async def tag() -> TrioResponse:
        asked = await parsed_body(schema.parse_tag)
        return _answer(convert.model_summary(await context.store.tag(asked.source, asked.target)))

    @routes.post("/untag")
    async def untag() -> TrioResponse:
        asked = await parsed_body(schema.parse_untag)
        return _answer(convert.model_summary(await context.store.untag(asked.target)))


def _add_configuration_routes(routes: Blueprint, context: AppContext) -> None:
    @routes.get("/configure")
    async def show_configuration() -> TrioResponse:
        name = request.args.get("model")
        if name is None:
            raise InvalidParameter(FieldFault("model", "is required"))
        return _answer(await configuring.shown(context, ModelName.parse(name)))

    @routes.post("/configure")
    async def configure() -> TrioResponse:
        return _answer(await configuring.configured(context, await parsed_body(schema.parse_configure)))


def _add_content_routes(routes: Blueprint, context: AppContext) -> None:
    @routes.post("/blobs")
    async def upload() -> TrioResponse:
        """The body goes to disk as it arrives; one that the disk is slow for waits in the client's socket."""
        blob = await context.store.receive_blob(
            request.body, size_bytes=request.content_length, digest=_announced_digest()
        )
        return _answer(blob, status=201)

    @routes.post("/package")
    async def package() -> TrioResponse:
        spec = convert.package_spec(await parsed_body(schema.parse_package))
        return _answer(convert.model_summary(await context.puller.package(spec)), status=201)


def _add_worker_routes(routes: Blueprint, context: AppContext) -> None:
    @routes.post("/start")
    async def start() -> TrioResponse:
        asked = await parsed_body(schema.parse_start)
        model = await context.store.resolve(asked.model)
        settings = model.settings
        kept_s = settings.keep_alive_s if asked.keep_alive is None else asked.keep_alive
        worker = await context.scheduler.start(
            model, keep_alive_s=kept_s, context_size=asked.context_size, pin=settings.pin
        )
        return _answer(worker)

    @routes.post("/unload")
    async def unload() -> TrioResponse:
        asked = await parsed_body(schema.parse_unload)
        if asked.all:
            return _answer(await context.scheduler.unload(None))
        models = [await context.store.resolve(name) for name in asked.models or ()]
        return _answer(await context.scheduler.unload(tuple(model.id for model in models)))

    @routes.post("/unquarantine")
    async def unquarantine() -> TrioResponse:
        asked = await parsed_body(schema.parse_unquarantine)
        return _answer(await context.scheduler.unquarantine(await context.store.resolve(asked.model)))


def _add_explaining_routes(routes: Blueprint, context: AppContext) -> None:
    @routes.get("/plan")
    async def show_plan() -> TrioResponse:
        """`?model=NAME&context_size=TOKENS`."""
        name = request.args.get("model")
        if name is None:
            raise InvalidParameter(FieldFault("model", "is required"))
        asked = schema.plan_query(name, request.args.get("context_size"))
        return _answer(await explaining.planned(context, asked.model, asked.context_size))

    @routes.post("/plan")
    async def plan() -> TrioResponse:
        """A question as well, for clients who rather send JSON."""
        asked = await parsed_body(schema.parse_plan)
        return _answer(await explaining.planned(context, asked.model, asked.context_size))

    @routes.get("/why")
    async def why() -> TrioResponse:
        """`?model=NAME` or `?request=ID`."""
        return _answer(await explaining.why(context, request.args.get("model"), request.args.get("request")))

    @routes.post("/budget")
    async def bound_memory() -> TrioResponse:
        """What models may take of host memory from now on; null takes the bound away."""
        asked = await parsed_body(schema.parse_budget)
        await context.daemon.bound_memory(asked.memory_budget)
        return _answer(context.scheduler.snapshot().budgets)


def _announced_digest() -> Digest | None:
    text = request.headers.get(DIGEST_HEADER)
    if text is None:
        return None
    try:
        return Digest.parse(text)
    except InvalidReference as error:
        raise InvalidParameter(FieldFault(DIGEST_HEADER, error.reason)) from None


def _boolean_query(name: str) -> bool:
    """False when it is missing, true when it stands without a value."""
    text = request.args.get(name)
    if text is None:
        return False
    value = _BOOLEANS.get(text.lower())
    if value is None:
        raise InvalidParameter(FieldFault(name, "must be true or false"))
    return value


async def _model_id_query(context: AppContext) -> str | None:
    text = request.args.get("model")
    if text is None:
        return None
    name = ModelName.parse(text)
    try:
        return str((await context.store.resolve(name)).id)
    except ModelNotFound:
        if name.digest is None:
            raise
        return str(name.digest)


def _answer(value: Any, status: int = 200) -> TrioResponse:
    return TrioResponse(convert.encode(value), status=status, content_type="application/json")
