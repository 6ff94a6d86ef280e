"""What a worker may say, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from runner.domain.events import Failed, TextDelta
from runner.errors import ProtocolFault
from runner.wire.checks import ERROR_TEXT_LIMIT, REQUEST_ID_LIMIT
from runner.wire.codec import FromWorkerDecoder, encode
from runner.wire.messages import Step
from runner.wire.schema import EVENTS_LIMIT
from tests.support.wire_messages import a_step, packed


def test_text_that_is_no_unicode_is_refused_by_the_sender() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode(a_step(("r1", TextDelta("\ud800", 1))))


@pytest.mark.parametrize("length", [ERROR_TEXT_LIMIT - 1, ERROR_TEXT_LIMIT, ERROR_TEXT_LIMIT + 1, 2_000_000])
def test_a_long_error_message_is_cut_by_the_sender_instead_of_failing_the_receiver(length: int) -> None:
    failed = Failed(code="template_failed", message="x" * length)
    (step,) = FromWorkerDecoder().feed(encode(a_step(("r1", failed))))
    assert isinstance(step, Step)
    event = step.events[0][1]
    assert isinstance(event, Failed)
    assert len(event.message) == min(length, ERROR_TEXT_LIMIT)
    assert event.message.endswith("…") == (length > ERROR_TEXT_LIMIT)


_METERS = (300, 80, 0.25, 0.24, 1, 2, 340, 80, 170, 3, 0, 0, 0, 0)
_STEP = (20, 7, 0, 1, 1, 0, 9, _METERS)
_DELTA = ("r1", 1, "text", 1)
_FINISHED = ("r1", 2, "stop", (1, 2, 0, 1), (0.0, 0.1, 0.2), 0)
_FAILED = ("r1", 3, "template_failed", "no", None, None)


def test_the_frames_below_are_valid_before_they_are_damaged() -> None:
    data = packed(*_STEP, [_DELTA, _FINISHED, _FAILED, ("r1", 0, 5)])
    (step,) = FromWorkerDecoder().feed(data)
    assert isinstance(step, Step)
    assert len(step.events) == 4


@pytest.mark.parametrize(
    "fields",
    [
        (16, 1),  # Hello
        (16, 1, 1, 1),
        (16, -1, 1),
        (16, 1, 0),
        (16, True, 1),
        (16, 1.0, 1),
        (16, 2**63, 1),
        (17, -0.1),  # LoadProgress
        (17, 1.1),
        (17, float("nan")),
        (17, 1),
        (17,),
        (18, "b1", 0, 1, 1, 1, 1, 0.1, 0, 0, 0),  # Loaded
        (18, "x" * 257, 1, 1, 1, 1, 1, 0.1, 0, 0, 0),
        (18, b"b1", 1, 1, 1, 1, 1, 0.1, 0, 0, 0),
        (18, "b1", 1, 1, 1, 1, 1, -0.1, 0, 0, 0),
        (18, "b1", 1, 1, 1, 1, 1, float("inf"), 0, 0, 0),
        (18, "b1", 1, 1, 1, 1, 1, 0.1, 0, 0),
        (18, "b1", 1, 1, 1, 1, 1, 0.1, 0, 0, 0, 0),
        (19, "loading failed", "m"),  # LoadFailed
        (19, "", "m"),
        (19, "x" * 65, "m"),
        (19, "é", "m"),
        (19, "loading_failed", "m" * (ERROR_TEXT_LIMIT + 1)),
        (*_STEP, None),  # Step
        (*_STEP, "events"),
        _STEP,
        (*_STEP, [], 0),
        (*_STEP[:-1], _METERS[:-1], []),
        (*_STEP[:-1], (*_METERS, 0), []),
        (*_STEP[:-1], _METERS[:2], []),
        (*_STEP[:-1], (300, 80, 0.25, -0.1, *_METERS[4:]), []),
        (*_STEP[:-1], (300, 80, 0.25, float("nan"), *_METERS[4:]), []),
        (*_STEP[:-1], (-1, *_METERS[1:]), []),
        (*_STEP[:-1], (300, -1, *_METERS[2:]), []),
        (*_STEP[:-1], (*_METERS[:-1], None), []),
        (20, -1, 0, 1, 1, 0, 9, []),
        (20, 7, 0, 1, 1, 0, "9", []),
        (*_STEP, [5]),  # its events
        (*_STEP, [()]),
        (*_STEP, [("r1", 99, 1)]),
        (*_STEP, [("r1", True, "text", 1)]),
        (*_STEP, [("", 1, "text", 1)]),
        (*_STEP, [("r" * (REQUEST_ID_LIMIT + 1), 1, "text", 1)]),
        (*_STEP, [(5, 1, "text", 1)]),
        (*_STEP, [("r1", 1, b"text", 1)]),
        (*_STEP, [("r1", 1, "text", -1)]),
        (*_STEP, [("r1", 1, "text", True)]),
        (*_STEP, [("r1", 1, "text")]),
        (*_STEP, [(*_DELTA, 0)]),
        (*_STEP, [("r1", 0, "5")]),
        (*_STEP, [("r1", 2, "tool", (1, 2, 0, 1), (0.0, 0.1, 0.2), 0)]),
        (*_STEP, [("r1", 2, "stop", (1, 2, 0), (0.0, 0.1, 0.2), 0)]),
        (*_STEP, [("r1", 2, "stop", (1, 2, 0, 1), (0.0, 0.1, float("nan")), 0)]),
        (*_STEP, [("r1", 2, "stop", 5, (0.0, 0.1, 0.2), 0)]),
        (*_STEP, [("r1", 2, "stop", (1, 2, 0, 1), (0.0, 0.1, 0.2), 8)]),
        (*_STEP, [("r1", 4, "x", 1, 8, ())]),
        (*_STEP, [("r1", 4, "x", 1, -1, ())]),
        (*_STEP, [("r1", 4, "x", -1, 0, ())]),
        (*_STEP, [("r1", 4, "x", 1, 0, (5,))]),
        (*_STEP, [("r1", 4, "x", 1, 0, ((5, "text", -0.1, ()),))]),
        (*_STEP, [("r1", 4, "x", 1, 0, ((5, b"text", float("nan"), ()),))]),
        (*_STEP, [("r1", 4, "x", 1, 0, ((5, b"text", -0.1, ((5, b"t", -0.1),) * 21),))]),
        (*_STEP, [("r1", 5, 8, "stop")]),
        (*_STEP, [("r1", 5, 0, "tool")]),
        (*_STEP, [("r1", 6, b"text", ())]),
        (*_STEP, [("r1", 7, 0, "text")]),
        (*_STEP, [("r1", 7, -1, b"")]),
        (*_STEP, [("r1", 8, 0, 0)]),
        (*_STEP, [("r1", 9, "text", 1)]),
        (*_STEP, [("r1", 9, b"text", 1, 0)]),
        (*_STEP, [("r1", 9, "text", -1, 0)]),
        (*_STEP, [("r1", 9, "text", 1, 8)]),
        (*_STEP, [("r1", 3, "Template-Failed", "no", None, None)]),
        (*_STEP, [("r1", 3, "template_failed", None, None, None)]),
        (*_STEP, [("r1", 3, "template_failed", "no", "9", None)]),
        (1, "llama", b"/m", (1, 1, 1, 1, 1), None, ()),  # LoadModel and the rest are not the worker's to say
        (2,),
        (3, "r1"),
        (4,),
        (5, 1),
    ],
)
def test_W07_a_message_of_wrong_shape_is_refused(fields: tuple[Any, ...]) -> None:
    with pytest.raises(ProtocolFault):
        FromWorkerDecoder().feed(packed(*fields))


@pytest.mark.parametrize("n_events", [EVENTS_LIMIT - 1, EVENTS_LIMIT])
def test_W07_a_step_with_as_many_events_as_allowed_is_read(n_events: int) -> None:
    (step,) = FromWorkerDecoder().feed(packed(*_STEP, [_DELTA] * n_events))
    assert isinstance(step, Step)
    assert len(step.events) == n_events


def test_W07_a_step_with_more_events_than_allowed_is_refused() -> None:
    with pytest.raises(ProtocolFault, match="undecodable"):
        FromWorkerDecoder().feed(packed(*_STEP, [_DELTA] * (EVENTS_LIMIT + 1)))
