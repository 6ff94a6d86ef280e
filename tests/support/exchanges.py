"""Recorded exchanges: a request, what the worker says to it, and the answer that a client got.

A file of `tests/conformance/<dialect>/` is JSON: `request` (method, path, body), `worker` (events in order; a
string is a delta of one token), `refusal` (instead: what the scheduler says), `dies` (the worker, after its
words), `response` (status, headers that matter, body as lines). Ids and times are replaced by fixed ones.
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
from runner.errors import WorkerCrashed
from tests.support.api import client_over
from tests.support.fake_handles import FakeParts, finished

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
        kind = getattr(errors, exchange["refusal"]["class"])
        parts.scheduler.refusal = kind(**exchange["refusal"].get("fields", {}))
    with _dying_worker(parts, exchange):
        response = await client_over(parts).open(
            request["path"],
            method=request["method"],
            data=orjson.dumps(request["body"]) if "body" in request else None,
            headers={"Content-Type": "application/json"},
        )
        content = (await response.get_data(as_text=False)).decode()
    for pattern, fixed in _CHANGING:
        content = pattern.sub(fixed, content)
    headers = {name: response.headers[name] for name in _HEADERS if name in response.headers}
    return {"status": response.status_code, "headers": headers, "body": content.split("\n")}


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
    return finished(reason=FinishReason(told["finished"]), completion_tokens=told["tokens"])
