"""What a worker may be told, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from runner.domain.constraints import PATH_CHARACTERS_MAX, SOURCE_BYTES_MAX
from runner.domain.engine import EngineOptions
from runner.domain.generation import ChatMessage, ChatPrompt, GenerationRequest
from runner.errors import ProtocolFault
from runner.hardware.pinning import DevicePin
from runner.wire.codec import ToWorkerDecoder, encode
from runner.wire.messages import Generate, LoadModel
from runner.wire.schema import ITEMS_LIMIT, to_fields
from tests.support.wire_messages import packed


def test_a_path_that_is_no_text_arrives_as_it_was() -> None:
    path = b"/models/\xff\xfe.gguf".decode("utf-8", "surrogateescape")
    message = LoadModel(
        engine="llama", weights_paths=(path,), options=EngineOptions(context_size=1, n_cells=1)
    )
    assert ToWorkerDecoder().feed(encode(message)) == [message]


_NUMBERS = (
    *(0.8, 0.95, 40, 0.05, None, 1.0, -1.0, 0.0, 1.0),  # to dynatemp_exponent
    *(1.0, 64, 0.0, 0.0, 0.0, 1.75, 2, 64),  # penalties and DRY
    *(0.0, 0.1, 0, 5.0, 0.1),  # XTC and mirostat
)
_SAMPLING = (_NUMBERS, ("\n",), ((5, -100.0),), ("top_k", "temperature"))
_CONSTRAINT = ("json_schema", '{"type":"object"}', "response_format")
_REQUEST = (2, "r1", (1, "hi"), _SAMPLING, 16, (), False, _CONSTRAINT, (True, ""), (2, 5, True, True, None))


def _number_with(index: int, value: Any) -> tuple[Any, ...]:
    return ((*_NUMBERS[:index], value, *_NUMBERS[index + 1 :]), *_SAMPLING[1:])


def _request_with(index: int, value: Any) -> tuple[Any, ...]:
    return (*_REQUEST[:index], value, *_REQUEST[index + 1 :])


@pytest.mark.parametrize(
    "fields",
    [
        (*_REQUEST, 0),
        _REQUEST[:-1],
        _request_with(1, ""),
        _request_with(2, ()),
        _request_with(2, (9, "hi")),
        _request_with(2, (1, b"hi")),
        _request_with(2, (2, b"1234567")),  # no whole number of ids
        _request_with(2, (2, (1, 2))),
        _request_with(2, (0, (("robot", "hi", None),), (), None)),
        _request_with(2, (0, (("user", None, None),), (), None)),
        _request_with(2, (0, (("user", "hi"),), (), None)),
        _request_with(2, (0, (), (("a", None),), None)),
        _request_with(2, (0, (), (("a",),), None)),
        _request_with(2, (0, (), ())),
        _request_with(2, (0, (), (), "some")),
        _request_with(2, (0, (), (), 1)),
        _request_with(3, _SAMPLING[:-1]),
        _request_with(3, (_NUMBERS[:-1], *_SAMPLING[1:])),
        _request_with(3, _number_with(0, 1)),
        _request_with(3, _number_with(0, 2.1)),
        _request_with(3, _number_with(0, None)),
        _request_with(3, _number_with(2, -1)),
        _request_with(3, _number_with(2, 40.0)),
        _request_with(3, _number_with(4, 0.5)),
        _request_with(3, (_NUMBERS, (5,), (), ())),
        _request_with(3, (_NUMBERS, (), ((5,),), ())),
        _request_with(3, (_NUMBERS, (), ((-1, 1.0),), ())),
        _request_with(3, (_NUMBERS, (), ((5, 1),), ())),
        _request_with(3, (_NUMBERS, (), (), ("top_q",))),
        _request_with(4, 0),
        _request_with(5, ("",)),
        _request_with(5, (5,)),
        _request_with(6, 0),
        _request_with(7, 0),
        _request_with(7, _CONSTRAINT[:-1]),
        _request_with(7, ("yaml", *_CONSTRAINT[1:])),
        _request_with(7, (_CONSTRAINT[0], b"{}", "p")),
        _request_with(7, (_CONSTRAINT[0], "x" * (SOURCE_BYTES_MAX + 1), "p")),
        _request_with(7, (*_CONSTRAINT[:2], "p" * (PATH_CHARACTERS_MAX + 1))),
        _request_with(9, (0, 5, True, True, None)),
        _request_with(9, (9, 5, True, True, None)),
        _request_with(9, (2, -1, True, True, None)),
        _request_with(9, (2, 21, True, True, None)),
        _request_with(9, (2, 5, None, True, None)),
        _request_with(9, (2, 5, True, None)),
        _request_with(9, (2, 5, True, None, None)),
        _request_with(9, (2, 5, True, True, "everything")),
        _request_with(8, True),
        _request_with(8, (True,)),
        _request_with(8, (1, "")),
        _request_with(8, (True, None)),
        _request_with(8, (True, "x" * 257)),
        (1, "llama", "/m", (1, 1, 1, 1, 1), None),
        (1, "llama", b"/m", (1, 1, 1, 1), None),
        (1, "llama", b"/m", (1, 1, 1, 1, 0), None),
        (1, "x" * 257, b"/m", (1, 1, 1, 1, 1), None),
        (3, ""),
        (3,),
        (4, 1),
        (5,),
        (5, 0),
        (5, -1),
        (5, True),
        (5, 1, 1),
        (16, 1, 1),  # Hello is not the daemon's to say
    ],
)
def test_a_message_to_the_worker_of_wrong_shape_is_refused(fields: tuple[Any, ...]) -> None:
    assert ToWorkerDecoder().feed(packed(*_REQUEST))
    with pytest.raises(ProtocolFault):
        ToWorkerDecoder().feed(packed(*fields))


@pytest.mark.parametrize(
    "pins",
    [
        None,
        (5,),
        (("CUDA_VISIBLE_DEVICES",),),
        (("CUDA_VISIBLE_DEVICES", 0),),
        (("LD_PRELOAD", "0"),),
        (("CUDA_VISIBLE_DEVICES", "a b"),),
    ],
)
def test_W01_a_load_sets_variables_that_choose_devices_and_no_others(pins: object) -> None:
    message = LoadModel(
        engine="llama",
        weights_paths=("/m",),
        options=EngineOptions(context_size=1, n_cells=1),
        pins=(DevicePin("CUDA_VISIBLE_DEVICES", "1"),),
    )
    *fields, sent_pins = to_fields(message)
    assert ToWorkerDecoder().feed(packed(*fields, sent_pins)) == [message]
    with pytest.raises(ProtocolFault):
        ToWorkerDecoder().feed(packed(*fields, pins))


def test_a_request_may_have_many_messages_but_not_any_number() -> None:
    def request(n_messages: int) -> bytes:
        message = ChatMessage(role="user", content="")
        return encode(
            Generate(GenerationRequest(request_id="r1", prompt=ChatPrompt(messages=(message,) * n_messages)))
        )

    assert ToWorkerDecoder().feed(request(ITEMS_LIMIT))
    with pytest.raises(ProtocolFault):
        ToWorkerDecoder().feed(request(ITEMS_LIMIT + 1))
