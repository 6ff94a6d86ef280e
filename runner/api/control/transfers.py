"""Transfers over the control API, and what else takes long: streams of JSON lines.

A line is `{"type": "progress", …}`; the last one is `{"type": "success", …}` or `{"type": "error", "error":
{…}}` in OpenAI's shape. What fails before there is anything to tell has a status instead. Credentials in a
request are for the registry of that request, and are kept nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from runner.api.bodies import parsed_body
from runner.api.control import convert, transfer_schema
from runner.api.errors import envelope, refusal_of
from runner.api.progress import answer_with, following, is_transferring_or_waits
from runner.api.streaming import EventStream

if TYPE_CHECKING:
    from runner.api.context import AppContext

CONTENT_TYPE: Final = "application/x-ndjson"


class Lines:
    """The `LineEncoder` of the control API: whatever fields progress and result have."""

    def progress(self, progress: Any, now_s: float) -> bytes:
        return self.repeated(progress)

    def repeated(self, progress: Any) -> bytes:
        return _line("progress", convert.plain(progress))

    def result(self, result: Any) -> bytes:
        return _line("success", convert.plain(result))

    def error(self, error: Exception) -> bytes:
        return _line("error", envelope(refusal_of(error)))


def add_transfer_routes(routes: Blueprint, context: AppContext) -> None:
    """`pull`, `push`, `repair`, `transfers`, and a look at models where they are."""
    puller = context.puller

    @routes.post("/pull")
    async def pull() -> EventStream:
        asked = await parsed_body(transfer_schema.parse_pull)
        return await _transfer(lambda: puller.pull(asked))

    @routes.post("/push")
    async def push() -> EventStream:
        asked = await parsed_body(transfer_schema.parse_push)
        return await _transfer(lambda: puller.push(asked))

    @routes.post("/repair")
    async def repair() -> EventStream:
        asked = await parsed_body(transfer_schema.parse_repair)
        return await _transfer(lambda: puller.repair(asked.model, asked.given()))

    @routes.get("/transfers")
    async def transfers() -> TrioResponse:
        return _answer(puller.status())

    @routes.post("/remote")
    async def remote() -> TrioResponse:
        """What a registry says of a model. A question, but one that may bring credentials."""
        return _answer(await context.remote.inspect(await parsed_body(transfer_schema.parse_pull)))


def add_disk_routes(routes: Blueprint, context: AppContext) -> None:
    """`df`, `gc`, `verify`."""
    store = context.store

    @routes.get("/df")
    async def df() -> TrioResponse:
        return _answer(await store.df())

    @routes.post("/gc")
    async def gc() -> TrioResponse:
        asked = await parsed_body(transfer_schema.parse_gc)
        return _answer(await store.gc(prune_untagged=asked.prune, dry_run=asked.dry_run))

    @routes.post("/verify")
    async def verify() -> EventStream:
        asked = await parsed_body(transfer_schema.parse_verify)
        return await answer_with(
            lambda tell: store.verify(asked.models, on_progress=tell),
            Lines(),
            CONTENT_TYPE,
            lambda progress: True,
        )


async def _transfer(begin: Any) -> EventStream:
    return await answer_with(following(begin), Lines(), CONTENT_TYPE, is_transferring_or_waits)


def _answer(value: Any) -> TrioResponse:
    return TrioResponse(convert.encode(value), content_type="application/json")


def _line(kind: str, fields: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": kind, **fields}) + b"\n"
