"""`plan`, `why` and the budget over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from runner.errors import RequestNotFound
from tests.support.api import answer_of, client_over, error_of, post
from tests.support.fake_handles import FakeParts, fake_model

pytestmark = pytest.mark.anyio

MODEL = "ai/smollm2:135M-Q4_1"
API = "/control/v1"


async def refused(response: Any) -> tuple[int, str]:
    return response.status_code, (await error_of(response))["code"]


@pytest.mark.parametrize("context_size", [None, 1, 4096])
async def test_a_plan_can_be_asked_for_by_query_and_by_body(context_size: int | None) -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    query = "" if context_size is None else f"&context_size={context_size}"
    body = {"model": MODEL} if context_size is None else {"model": MODEL, "context_size": context_size}
    by_query = await answer_of(await client.get(f"{API}/plan?model={quote(MODEL, safe='')}{query}"))
    by_body = await answer_of(await post(client, f"{API}/plan", body))
    assert by_query == by_body
    assert (by_body["verdict"], by_body["victims"], by_body["context_size"]) == (
        "load",
        [],
        context_size or 8192,
    )
    assert parts.scheduler.calls == [("plan", (MODEL, context_size))] * 2


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "٣", "2147483648", "9" * 40])
async def test_N12_a_context_that_is_no_size_is_refused(text: str) -> None:
    parts = FakeParts.make()
    answer = await client_over(parts).get(f"{API}/plan?model=x&context_size={quote(text)}")
    assert await refused(answer) == (400, "invalid_parameter")
    assert parts.scheduler.calls == []


async def test_a_plan_needs_a_model_that_is_there() -> None:
    client = client_over(FakeParts.make())
    assert await refused(await client.get(f"{API}/plan")) == (400, "invalid_parameter")
    assert await refused(await client.get(f"{API}/plan?model=ai/nothing")) == (404, "model_not_found")
    assert (await refused(await post(client, f"{API}/plan", {"model": MODEL, "act": True})))[0] == 400


async def test_why_is_told_of_a_model_and_of_one_that_has_gone_by_its_digest() -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    answer = await answer_of(await client.get(f"{API}/why?model={quote(MODEL, safe='')}"))
    assert (answer["model"], answer["decisions"], answer["requests"]) == (MODEL, [], [])
    assert parts.scheduler.calls == [("why_model", (fake_model().id, MODEL))]
    gone = "sha256:" + "1" * 64
    answer = await answer_of(await client.get(f"{API}/why?model={gone}"))
    assert (answer["model"], answer["model_id"]) == ("1" * 12, gone)
    assert await refused(await client.get(f"{API}/why?model=ai/nothing")) == (404, "model_not_found")


async def test_why_is_told_of_a_request() -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    await answer_of(await client.get(f"{API}/why?request=req_1"))
    assert parts.scheduler.calls == [("why_request", "req_1")]
    parts.scheduler.refusal = RequestNotFound("req_2")
    assert await refused(await client.get(f"{API}/why?request=req_2")) == (404, "request_not_found")


@pytest.mark.parametrize(
    "query", ["", "?model=x&request=y", f"?request={'a' * 129}", "?model=..%2Fetc%2Fpasswd"]
)
async def test_why_needs_one_thing_to_tell_of(query: str) -> None:
    status, _ = await refused(await client_over(FakeParts.make()).get(f"{API}/why{query}"))
    assert status == 400


async def test_requests_are_known_by_the_id_of_their_answer_and_by_what_the_client_calls_them() -> None:
    parts = FakeParts.make(lambda request: [])
    client = client_over(parts)
    parts.scheduler.refusal = RequestNotFound("any error ends it")
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    await client.post(
        "/v1/chat/completions", json=body, headers={"x-request-id": "mine", "host": "localhost"}
    )
    [(request_id, label)] = parts.scheduler.known_as
    assert request_id is not None and request_id.startswith("chatcmpl-") and label == "mine"


@pytest.mark.parametrize("size_bytes", [0, 8 * 2**30, None])
async def test_the_budget_changes_without_a_restart(size_bytes: int | None) -> None:
    parts = FakeParts.make()
    await answer_of(await post(client_over(parts), f"{API}/budget", {"memory_budget": size_bytes}))
    assert parts.daemon.bounds == [size_bytes]


@pytest.mark.parametrize("body", [{}, {"memory_budget": -1}, {"memory_budget": "8GiB"}, {"memory": 1}])
async def test_N12_a_budget_that_is_no_size_is_refused(body: dict[str, Any]) -> None:
    parts = FakeParts.make()
    assert (await refused(await post(client_over(parts), f"{API}/budget", body)))[0] == 400
    assert parts.daemon.bounds == []
