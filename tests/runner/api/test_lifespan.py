from __future__ import annotations

from typing import Any

import pytest
import trio

from runner.api.app import bare_app
from runner.api.lifespan import lifespan
from tests.support.http_server import LIMIT_S

pytestmark = pytest.mark.anyio


async def test_an_app_has_its_background_nursery_inside() -> None:
    app = bare_app()
    done = trio.Event()

    async def work() -> None:
        done.set()

    async with lifespan(app):
        app.nursery.start_soon(work)
        await done.wait()


async def test_background_tasks_end_with_it(virtual_clock: trio.testing.MockClock) -> None:
    app = bare_app()
    async with lifespan(app):
        app.nursery.start_soon(trio.sleep_forever)
    assert trio.current_time() < 2


async def test_a_background_task_that_fails_ends_the_server() -> None:
    app = bare_app()

    async def fail() -> None:
        raise ValueError("broken")

    with trio.fail_after(LIMIT_S), pytest.raises(ExceptionGroup) as caught:
        async with lifespan(app):
            app.nursery.start_soon(fail)
            await trio.sleep_forever()
    assert caught.group_contains(ValueError, match="broken")


async def test_an_app_that_cannot_start_is_an_error() -> None:
    app = bare_app()

    @app.before_serving
    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ExceptionGroup) as caught:
        async with lifespan(app):
            raise AssertionError("not reached")
    assert caught.group_contains(RuntimeError, match=r"lifespan.startup.failed")


async def test_an_app_that_leaves_early_is_noticed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    with trio.fail_after(LIMIT_S), pytest.raises(ExceptionGroup) as caught:
        async with lifespan(app):
            raise AssertionError("not reached")
    assert caught.group_contains(trio.EndOfChannel)
