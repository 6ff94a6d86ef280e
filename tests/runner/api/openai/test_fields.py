"""Every field of a request is explained."""

from __future__ import annotations

import attrs

from runner.api.openai.fields import helps
from runner.api.openai.schema import ChatRequest, CompletionRequest
from runner.domain.sampling import RANGES


def test_every_field_is_explained_once_and_for_its_endpoints() -> None:
    found = {one.name: one for one in helps()}
    chat, completion = (set(attrs.fields_dict(kind)) for kind in (ChatRequest, CompletionRequest))
    assert found.keys() == chat | completion
    for one in found.values():
        assert one.values
        assert one.meaning
    assert {name for name, one in found.items() if one.endpoints == "both"} == chat & completion
    assert {name for name, one in found.items() if one.endpoints == "chat"} == chat - completion


def test_what_can_be_measured_has_its_range_and_default() -> None:
    found = {one.name: one for one in helps()}
    for name in RANGES:
        assert " to " in found[name].values
        assert found[name].default
    assert (found["top_k"].values, found["top_k"].default) == ("0 to 1000000", "40")
