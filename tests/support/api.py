"""The whole application over handles in memory, spoken to through Quart's test client."""

from __future__ import annotations

from typing import Any, cast

import orjson
from quart.typing import TestClientProtocol
from quart.wrappers import Response

from runner.api.app import build_app
from runner.api.context import AppContext
from tests.support.fake_handles import FakeParts


def app_over(parts: FakeParts) -> Any:
    return build_app(
        AppContext(
            store=cast(Any, parts.store),
            puller=cast(Any, parts.puller),
            scheduler=cast(Any, parts.scheduler),
            daemon=cast(Any, parts.daemon),
            remote=cast(Any, parts.remote),
        )
    )


def client_over(parts: FakeParts) -> TestClientProtocol:
    return cast(TestClientProtocol, app_over(parts).test_client())


async def post(client: TestClientProtocol, path: str, body: Any) -> Response:
    """POST JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return await client.post(path, data=data, headers={"Content-Type": "application/json"})


async def leave(connection: Any) -> None:
    """Go away as a client does. The server then sends nothing more, which Quart's test connection would wait
    for without end."""
    await connection.disconnect()
    await connection._client_send.aclose()


async def answer_of(response: Response) -> Any:
    """The JSON of an answer, with what holds for every answer checked."""
    content = await response.get_data(as_text=False)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.content_type == "application/json"
    return orjson.loads(content)


async def error_of(response: Response) -> dict[str, Any]:
    """The error object of an answer in OpenAI's envelope."""
    answer = await answer_of(response)
    assert list(answer) == ["error"]
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    return cast(dict[str, Any], answer["error"])
