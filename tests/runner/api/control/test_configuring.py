"""`configure` through the whole application, over handles in memory."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from runner.domain.settings import CHAT_TEMPLATE_BYTES_MAX, SETTINGS, ModelSettings
from runner.domain.status import UnloadReport
from tests.support.api import answer_of, client_over, error_of, post
from tests.support.fake_handles import FakeParts, fake_model

pytestmark = pytest.mark.anyio

MODEL = "ai/smollm2:135M-Q4_1"
PATH = "/control/v1/configure"


def settings_of(answer: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    return {one["name"]: (one["value"], one["origin"]) for one in answer["settings"]}


async def configure(parts: FakeParts, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await answer_of(await post(client_over(parts), PATH, {"model": MODEL, **fields}))
    return answer


async def show(parts: FakeParts) -> dict[str, tuple[Any, str]]:
    return settings_of(await answer_of(await client_over(parts).get(f"{PATH}?model={MODEL}")))


async def test_every_setting_is_shown_with_its_origin() -> None:
    parts = FakeParts.make()
    parts.store.models = [
        attrs.evolve(
            fake_model(), context_size=2048, has_chat_template=True, settings=ModelSettings(temperature=0.5)
        )
    ]
    shown = await show(parts)
    assert list(shown) == [setting.name for setting in SETTINGS]
    assert shown["temperature"] == (0.5, "configured")
    assert shown["context_size"] == (2048, "packaged")
    assert shown["chat_template"] == (None, "packaged")
    assert shown["top_k"] == (40, "built-in")
    assert shown["seed"] == (None, "built-in")
    assert shown["key_type"] == ("f16", "built-in")


async def test_a_template_that_nobody_gave_is_the_models() -> None:
    assert (await show(FakeParts.make()))["chat_template"] == (None, "model")


async def test_one_value_is_changed_and_nothing_else_is_lost() -> None:
    parts = FakeParts.make()
    await configure(parts, set={"temperature": 0.5, "keep_alive": -1})
    answer = await configure(parts, set={"top_k": 3}, unset=["temperature"])
    assert answer["model"] == MODEL
    assert answer["model_id"] == str(fake_model().id)
    shown = settings_of(answer)
    assert shown["keep_alive"] == (-1, "configured")
    assert shown["top_k"] == (3, "configured")
    assert shown["temperature"] == (0.8, "built-in")
    assert await show(parts) == shown
    assert parts.store.models[0].settings == ModelSettings(top_k=3, keep_alive_s=math.inf)


@pytest.mark.parametrize("name", [setting.name for setting in SETTINGS if setting.is_load_option])
async def test_an_idle_model_is_unloaded_when_what_it_was_loaded_with_changes(name: str) -> None:
    values = {"key_type": "q8_0", "value_type": "q8_0", "flash_attention": "on", "chat_template": "{{ 1 }}"}
    parts = FakeParts.make()
    answer = await configure(parts, set={name: values.get(name, 512 if name == "context_size" else 2)})
    assert (answer["was_unloaded"], answer["is_outdated"]) == (True, False)
    assert parts.scheduler.calls == [("unload", (fake_model().id,))]
    again = await configure(parts, set={name: settings_of(answer)[name][0]})
    assert (again["was_unloaded"], again["is_outdated"]) == (False, False)
    assert len(parts.scheduler.calls) == 1


async def test_a_model_in_use_is_not_interrupted_and_the_answer_says_so() -> None:
    parts = FakeParts.make()
    parts.scheduler.unload_report = UnloadReport(unloaded=(), in_use=(MODEL,))
    answer = await configure(parts, set={"context_size": 512})
    assert (answer["was_unloaded"], answer["is_outdated"]) == (False, True)


async def test_sampling_changes_no_loaded_model() -> None:
    parts = FakeParts.make()
    answer = await configure(parts, set={"temperature": 0.5, "top_p": 0.5, "top_k": 1, "min_p": 0, "seed": 1})
    assert (answer["was_unloaded"], answer["is_outdated"]) == (False, False)
    assert parts.scheduler.calls == []


async def test_keep_alive_holds_at_once_for_a_loaded_model() -> None:
    parts = FakeParts.make()
    await configure(parts, set={"keep_alive": "10m"})
    assert parts.scheduler.calls == [("start", (MODEL, 600.0))]


async def test_a_pin_holds_at_once_and_so_does_its_end() -> None:
    parts = FakeParts.make()
    await configure(parts, set={"pin": True})
    await configure(parts, set={"keep_alive": "10m"})
    await configure(parts, unset=["pin"])
    assert [call for call, _ in parts.scheduler.calls] == ["start"] * 3
    assert parts.scheduler.pins == [True, True, False]
    assert parts.scheduler.calls[-1] == ("start", (MODEL, 600.0))


async def test_keep_alive_loads_nothing() -> None:
    parts = FakeParts.make()
    parts.store.models = [fake_model(digest_of=b"another")]
    await configure(parts, set={"keep_alive": "10m"})
    assert parts.scheduler.calls == []


async def test_a_start_keeps_a_model_as_configured_unless_it_says_otherwise() -> None:
    parts = FakeParts.make()
    parts.store.models = [attrs.evolve(fake_model(), settings=ModelSettings(keep_alive_s=9.0))]
    client = client_over(parts)
    await answer_of(await post(client, "/control/v1/start", {"model": MODEL}))
    await answer_of(await post(client, "/control/v1/start", {"model": MODEL, "keep_alive": 0}))
    assert parts.scheduler.calls == [("start", (MODEL, 9.0)), ("start", (MODEL, 0.0))]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, ["set: names no setting"]),
        ({"set": {}}, ["set: names no setting"]),
        ({"set": {}, "unset": []}, ["set: names no setting"]),
        ({"set": []}, ["set: must be an object"]),
        ({"set": {"colour": "red"}}, ["set.colour: is no setting"]),
        ({"set": {"temperature": None}}, ["set.temperature: must be a number"]),
        ({"set": {"temperature": 3, "top_k": -1}}, ["set.temperature: ", "set.top_k: "]),
        ({"set": {"chat_template": "x" * (CHAT_TEMPLATE_BYTES_MAX + 1)}}, ["set.chat_template: "]),
        ({"unset": ["colour"]}, ["unset[0]: is no setting"]),
        ({"unset": "seed"}, ["unset: must be a list"]),
        ({"unset": ["seed"] * (len(SETTINGS) + 1)}, ["unset: must have 0 to"]),
        ({"set": {"seed": 1}, "unset": ["seed"]}, ["unset: names seed, which is set"]),
        ({"set": {"seed": 1.5}, "unset": ["colour"], "more": 1}, ["set.seed: ", "unset[0]: ", "more: "]),
    ],
)
async def test_N12_all_that_is_wrong_is_told_at_once_and_nothing_changes(
    fields: dict[str, Any], told: list[str]
) -> None:
    parts = FakeParts.make()
    response = await post(client_over(parts), PATH, {"model": MODEL, **fields})
    error = await error_of(response)
    assert (response.status_code, error["code"]) == (400, "invalid_parameter")
    for part in told:
        assert part in error["message"]
    assert parts.store.models == [fake_model()]


@pytest.mark.parametrize(
    ("query", "status"), [("", 400), ("?model=", 400), ("?model=..", 400), ("?model=ai/absent", 404)]
)
async def test_N19_a_configuration_is_shown_of_a_model_that_is_there(query: str, status: int) -> None:
    response = await client_over(FakeParts.make()).get(f"{PATH}{query}")
    assert response.status_code == status


async def test_N06_showing_changes_nothing() -> None:
    parts = FakeParts.make()
    await show(parts)
    assert (parts.scheduler.calls, parts.store.changes) == ([], [])


async def test_what_is_unknown_is_not_configured() -> None:
    response = await post(client_over(FakeParts.make()), PATH, {"model": "ai/absent", "set": {"seed": 1}})
    assert (response.status_code, (await error_of(response))["code"]) == (404, "model_not_found")
