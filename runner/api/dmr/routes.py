"""Docker Model Runner's native model endpoints over HTTP.

Nothing is decided here that another dialect decides as well: names go through the one parser, transfers
through the puller, changes through the store. Reading is GET and changes nothing (N06).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import HTTPException

from actors.archives import SavedArchive, load_archive
from runner.api.archives import ArchiveSource
from runner.api.bodies import parsed_body
from runner.api.dmr import convert, errors, schema
from runner.api.progress import answer_with, following, is_transferring
from runner.api.streaming import EventStream
from runner.domain.model import Model
from runner.domain.status import ModelReport, Removal
from runner.domain.transfer import PullRequest, PushRequest, RemoteCredentials, TransferDirection
from runner.errors import AmbiguousModel, ModelInUse, ModelNotFound, NotFound, StoreDamaged
from runner.oci.reference import ModelName
from runner.store.package import PackageSpec

if TYPE_CHECKING:
    from runner.api.context import AppContext

PREFIX: Final = "/models"
_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def blueprint(context: AppContext) -> Blueprint:
    """Every native route. What is none of them is not found, whatever its method."""
    routes = Blueprint("dmr", __name__, url_prefix=PREFIX)
    _add_error_handlers(routes)
    _add_reading_routes(routes, context)
    _add_transfer_routes(routes, context)
    _add_changing_routes(routes, context)
    _add_unknown_routes(routes)
    return routes


def _add_error_handlers(routes: Blueprint) -> None:
    @routes.errorhandler(HTTPException)
    async def on_http_exception(error: HTTPException) -> TrioResponse:
        return errors.response_to(error)

    @routes.errorhandler(Exception)
    async def on_exception(error: Exception) -> TrioResponse:
        errors.log_fault(error)
        return errors.response_to(error)


def _add_reading_routes(routes: Blueprint, context: AppContext) -> None:
    @routes.get("")
    async def list_models() -> TrioResponse:
        """What cannot be read is left out."""
        reports = [await _report(context, model) for model in await context.store.list()]
        return _json([convert.model_object(report) for report in reports if report is not None])

    @routes.get("/<path:name>")
    async def show_model(name: str) -> TrioResponse:
        meant = ModelName.parse(name)
        if schema.boolean(request.args.get("remote")):
            asked = PullRequest(reference=schema.place(meant), source_text=name)
            return _json(convert.model_object(await context.remote.inspect(asked), is_remote=True))
        model = await _found(context, meant)
        return _json(convert.model_object(await context.store.inspect(ModelName.of(model.id))))

    @routes.get("/<path:name>/export")
    async def export(name: str) -> EventStream:
        archive = await SavedArchive.open(context.store, ModelName.parse(name))
        return EventStream(
            ArchiveSource(archive),
            "application/x-tar",
            headers={"Content-Disposition": f'attachment; filename="{name}.tar"'},
        )


def _add_transfer_routes(routes: Blueprint, context: AppContext) -> None:
    @routes.post("/create")
    async def create() -> EventStream:
        asked = await parsed_body(schema.parse_create)
        wanted = PullRequest(
            reference=asked.reference, given=_given(asked.bearer_token), source_text=asked.written
        )
        return await _streamed(TransferDirection.PULL, lambda: context.puller.pull(wanted))

    @routes.post("/<path:name>/push")
    async def push(name: str) -> EventStream:
        token = await parsed_body(schema.parse_push)
        wanted = PushRequest(name=ModelName.parse(name), given=_given(token))
        return await _streamed(TransferDirection.PUSH, lambda: context.puller.push(wanted))


def _add_changing_routes(routes: Blueprint, context: AppContext) -> None:
    @routes.post("/<path:name>/tag")
    async def tag(name: str) -> TrioResponse:
        meant = ModelName.parse(name)
        written, target = schema.tag_target(request.args.get("repo"), request.args.get("tag"))
        model = await _found(context, meant)
        await context.store.tag(ModelName.of(model.id), target)
        message = f'Model tagged successfully with "{written}"'
        return _json({"message": message, "target": written}, status=201)

    @routes.post("/<path:name>/repackage")
    async def repackage(name: str) -> TrioResponse:
        asked = await parsed_body(schema.parse_repackage)
        source = await context.store.resolve(ModelName.parse(name))
        await context.puller.package(
            PackageSpec(target=asked.target, base=ModelName.of(source.id), context_size=asked.context_size)
        )
        message = f'Model repackaged successfully as "{asked.written}"'
        return _json({"message": message, "source": name, "target": asked.written}, status=201)

    @routes.delete("/<path:name>")
    async def remove(name: str) -> TrioResponse:
        force = schema.boolean(request.args.get("force"))
        removals = await _removed(context, ModelName.parse(name), force=force)
        return _json([convert.removal_object(removal) for removal in removals])

    @routes.post("/load")
    async def load() -> TrioResponse:
        """Models of an archive keep the names they have there; those that docker writes have none."""
        await load_archive(context.store, request.body)
        line = convert.line("success", "Model loaded successfully", TransferDirection.PULL, is_json=True)
        return TrioResponse(line, content_type=errors.TEXT)

    @routes.delete("/purge")
    async def purge() -> TrioResponse:
        await _purge(context)
        return TrioResponse(b"", content_type="text/plain")


def _add_unknown_routes(routes: Blueprint) -> None:
    @routes.post("/<path:rest>")
    async def unknown_action(rest: str) -> TrioResponse:
        _, slash, action = rest.rpartition("/")
        raise errors.unknown_action(action) if slash else NotFound("not found")

    @routes.route("/<path:rest>", methods=["PUT", "PATCH"])
    async def nothing(rest: str) -> TrioResponse:
        raise NotFound("not found")

    @routes.route("", methods=["POST", "PUT", "PATCH", "DELETE"])
    async def no_model() -> TrioResponse:
        raise NotFound("not found")


async def _streamed(direction: TransferDirection, begin: Any) -> EventStream:
    """Lines of JSON for who accepts exactly that, else the same lines escaped."""
    is_json = errors.accepts_json()
    lines = convert.ProgressLines(direction, is_json=is_json)
    content_type = errors.JSON if is_json else "text/plain"
    return await answer_with(following(begin), lines, content_type, is_transferring)


async def _report(context: AppContext, model: Model) -> ModelReport | None:
    try:
        return await context.store.inspect(ModelName.of(model.id))
    except (ModelNotFound, StoreDamaged):  # gone meanwhile, or not readable
        return None


async def _found(context: AppContext, name: ModelName) -> Model:
    """1. The model of this name or id.  2. Else the one that has this as the last part of a name."""
    try:
        return await context.store.resolve(name)
    except ModelNotFound:
        matching = [
            model
            for model in await context.store.list()
            if any(schema.is_last_part(name.text, tag) for tag in model.tags)
        ]
        if not matching:
            raise
    if len(matching) > 1:
        raise AmbiguousModel(name.text, tuple(model.name for model in matching))
    return matching[0]


async def _removed(context: AppContext, name: ModelName, *, force: bool) -> tuple[Removal, ...]:
    """A model that is loaded and idle is unloaded for it, since these clients know no refusal there."""
    try:
        return await context.store.remove(name, force=force)
    except ModelInUse:
        model = await context.store.resolve(name)
        report = await context.scheduler.unload((model.id,))
        if report.in_use:
            raise
    return await context.store.remove(name, force=force)


async def _purge(context: AppContext) -> None:
    """Everything goes, or nothing when a model is in use."""
    report = await context.scheduler.unload(None)
    if report.in_use:
        raise ModelInUse(report.in_use[0])
    for model in await context.store.list():
        await context.store.remove(ModelName.of(model.id), force=True)
    await context.store.gc(prune_untagged=True)


def _given(token: str | None) -> RemoteCredentials | None:
    return None if token is None else RemoteCredentials(bearer_token=token)


def _json(document: Any, status: int = 200) -> TrioResponse:
    return TrioResponse(orjson.dumps(document), status=status, content_type=errors.JSON)
