"""`save` and `load`: models as archives, streamed both ways.

`GET /save?model=NAME` is the archive; its length is in `X-Archive-Length`, since the answer itself has none.
`POST /load` takes one as its body and answers with the models that it held; `?name=NAME` names a single one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse

from actors.archives import SavedArchive, load_archive
from runner.api.archives import ArchiveSource
from runner.api.control import convert
from runner.api.streaming import EventStream
from runner.errors import FieldFault, InvalidParameter
from runner.oci.reference import ModelName, Reference

if TYPE_CHECKING:
    from runner.api.context import AppContext

CONTENT_TYPE: Final = "application/x-tar"
LENGTH_HEADER: Final = "X-Archive-Length"


def add_archive_routes(routes: Blueprint, context: AppContext) -> None:
    @routes.get("/save")
    async def save() -> EventStream:
        name = request.args.get("model")
        if name is None:
            raise InvalidParameter(FieldFault("model", "is required"))
        archive = await SavedArchive.open(context.store, ModelName.parse(name))
        headers = {LENGTH_HEADER: str(archive.size_bytes)}
        return EventStream(ArchiveSource(archive), CONTENT_TYPE, headers=headers)

    @routes.post("/load")
    async def load() -> TrioResponse:
        name = request.args.get("name")
        models = await load_archive(
            context.store, request.body, name=Reference.parse(name) if name is not None else None
        )
        summaries = [convert.model_summary(model) for model in models]
        return TrioResponse(convert.encode(summaries), status=201, content_type="application/json")
