"""Recorded exchanges: a request, what the worker says to it, and the answer that a client got.

A file of `tests/conformance/<dialect>/` is JSON: `request` (method, path, body), `worker` (events in order; a
string is a delta of one token, `reasoning` one of reasoning), `refusal` (instead: what the scheduler says),
`dies` (the worker, after its words), `transfer` (what the puller tells: moments, then a result or an error),
`store` and `remote` (what they have or refuse), `response` (status, headers that matter, body as lines). Ids
and times are replaced by fixed ones.
`python scripts/record_exchange.py FILE…` records anew what the application answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from runner import errors
from runner.domain.events import Accepted, Failed, FinishReason, GenerationEvent, TextDelta
from runner.domain.transfer import LayerProgress, TransferDirection, TransferPhase, TransferProgress
from runner.errors import WorkerCrashed
from runner.oci.digest import Digest
from tests.support.api import client_over
from tests.support.fake_handles import FakeParts, fake_model, finished
from tests.support.fake_transfers import ended

CONFORMANCE = Path(__file__).parent.parent / "conformance"
_HEADERS = ("Content-Type", "Retry-After")
_CHANGING = (
    (re.compile(r"\b(chatcmpl|cmpl)-[0-9a-f]{24}\b"), r"\1-000000000000000000000000"),
    (re.compile(r'(completion(?:\.chunk)?","created":)\d+'), r"\g<1>1700000000"),
)


def exchanges(dialect: str) -> list[Path]:
    return sorted((CONFORMANCE / dialect).glob("*.json"))


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def save(path: Path, exchange: dict[str, Any]) -> None:
    path.write_text(json.dumps(exchange, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


async def answer(exchange: dict[str, Any]) -> dict[str, Any]:
    """The `response` of an exchange, as the application gives it now."""
    request = exchange["request"]
    parts = FakeParts.make(lambda _: [_event(told) for told in exchange.get("worker", ())])
    if "refusal" in exchange:
        parts.scheduler.refusal = _error(exchange["refusal"])
    _prepare_transfers(parts, exchange.get("transfer", {}))
    _prepare_models(parts, exchange)
    with _dying_worker(parts, exchange):
        response = await client_over(parts).open(
            request["path"],
            method=request["method"],
            data=orjson.dumps(request["body"]) if "body" in request else None,
            headers={"Content-Type": "application/json", **request.get("headers", {})},
        )
        content = (await response.get_data(as_text=False)).decode()
    for pattern, fixed in _CHANGING:
        content = pattern.sub(fixed, content)
    headers = {name: response.headers[name] for name in _HEADERS if name in response.headers}
    return {"status": response.status_code, "headers": headers, "body": content.split("\n")}


def _error(told: dict[str, Any]) -> Any:
    kind = getattr(errors, told["class"])
    return kind(*told.get("arguments", ()), **told.get("fields", {}))


def _prepare_transfers(parts: FakeParts, told: dict[str, Any]) -> None:
    """`layers` of a moment are names of content, sizes and what is done, in bytes."""
    parts.puller.moments = [_moment(one) for one in told.get("moments", ())]
    if "error" in told:
        parts.puller.outcome = _error(told["error"])
    else:
        parts.puller.outcome = ended(**told.get("result", {}))


def _moment(told: dict[str, Any]) -> TransferProgress:
    layers = tuple(
        LayerProgress(
            digest=str(Digest.of(name.encode())),
            kind="gguf",
            title=name,
            size_bytes=size_bytes,
            done_bytes=done_bytes,
        )
        for name, size_bytes, done_bytes in told.get("layers", ())
    )
    return TransferProgress(
        direction=TransferDirection.PULL,
        phase=TransferPhase(told.get("phase", "transferring")),
        layers=layers,
        total_bytes=sum(layer.size_bytes for layer in layers),
        done_bytes=sum(layer.done_bytes for layer in layers),
        notes=tuple(told.get("notes", ())),
    )


def _prepare_models(parts: FakeParts, exchange: dict[str, Any]) -> None:
    store, remote = exchange.get("store", {}), exchange.get("remote", {})
    if "models" in store:
        parts.store.models = [
            fake_model(name, digest_of=f"manifest {index}".encode())
            for index, name in enumerate(store["models"])
        ]
    if "refusal" in store:
        parts.store.refusal = _error(store["refusal"])
    if "refusal" in remote:
        parts.remote.refusal = _error(remote["refusal"])


@contextmanager
def _dying_worker(parts: FakeParts, exchange: dict[str, Any]) -> Iterator[None]:
    """`"dies": true`: the worker says what it has to say and is gone."""
    worker = parts.scheduler.workers[0]
    if exchange.get("dies"):
        open_stream = worker.open_stream

        def open_and_die(request: Any) -> Any:
            stream = open_stream(request)
            stream.fail(WorkerCrashed(model="ai/smollm2:135M-Q4_1", cause="signal SIGSEGV"))
            return stream

        worker.open_stream = open_and_die  # type: ignore[method-assign]
    yield


def _event(told: Any) -> GenerationEvent:
    if isinstance(told, str):
        return TextDelta(told, 1)
    if "accepted" in told:
        return Accepted(prompt_tokens=told["accepted"])
    if "failed" in told:
        return Failed(**told["failed"])
    if "reasoning" in told:
        return TextDelta(told["reasoning"], 1, is_reasoning=True)
    return finished(
        reason=FinishReason(told["finished"]),
        completion_tokens=told["tokens"],
        reasoning_tokens=told.get("reasoning_tokens", 0),
    )
