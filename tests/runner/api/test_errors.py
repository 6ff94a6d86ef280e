from __future__ import annotations

import json

import pytest
import trio
from werkzeug.exceptions import BadRequest, ImATeapot, InternalServerError, MethodNotAllowed, NotFound

from runner import errors
from runner.api.errors import INTERNAL_ERROR, Refusal, encode, envelope, leading_error, refusal_of, status_of
from runner.errors import FieldFault

EXAMPLES: dict[type[BaseException], tuple[BaseException, int, str]] = {
    type(error): (error, status, code)
    for error, status, code in [
        (errors.RunnerError("x"), 500, "internal_error"),
        (errors.BadInput("x"), 400, "invalid_parameter"),
        (errors.InvalidParameter(FieldFault("a", "b")), 400, "invalid_parameter"),
        (errors.UnsupportedParameter(FieldFault("a", "b")), 400, "unsupported_parameter"),
        (errors.InvalidReference("a", "b"), 400, "invalid_reference"),
        (errors.InvalidModelFile("x"), 400, "invalid_model_file"),
        (errors.TemplateFailed("x"), 400, "template_failed"),
        (errors.ContextLengthExceeded(9, 8), 400, "context_length_exceeded"),
        (errors.TooLarge("x", 8), 413, "request_too_large"),
        (errors.NotFound("x"), 404, "not_found"),
        (errors.ModelNotFound("x"), 404, "model_not_found"),
        (errors.Conflict("x"), 409, "conflict"),
        (errors.AmbiguousModel("x", ("y",)), 409, "ambiguous"),
        (errors.ModelInUse("x"), 409, "model_in_use"),
        (errors.Busy("x"), 503, "unavailable"),
        (errors.QueueFull("x"), 429, "queue_full"),
        (
            errors.InsufficientMemory(model="x", needed_bytes=3, free_bytes=2, reserved_bytes=1),
            503,
            "insufficient_memory",
        ),
        (errors.LoadingFailed("x"), 503, "loading_failed"),
        (errors.Draining(), 503, "draining"),
        (errors.Unavailable("x"), 503, "unavailable"),
        (errors.LoadTimeout("x"), 504, "load_timeout"),
        (errors.WorkerCrashed(model="x", cause="signal SIGSEGV"), 502, "worker_crashed"),
        (errors.StoreError("x"), 500, "store_error"),
        (errors.DiskFull("x"), 507, "disk_full"),
        (errors.StoreDamaged("x"), 500, "store_damaged"),
        (errors.StartRefused("x"), 500, "start_refused"),
    ]
}


def subclasses(kind: type[BaseException]) -> set[type[BaseException]]:
    return {kind}.union(*(subclasses(inner) for inner in kind.__subclasses__()))


def test_every_error_has_its_status_and_its_code() -> None:
    for error, status, code in EXAMPLES.values():
        refusal = refusal_of(error)
        assert (refusal.status, refusal.code) == (status, code), error
        assert refusal.message == str(error)


def test_every_class_of_the_tree_is_listed_here_or_inherits_from_one_that_is() -> None:
    for kind in subclasses(errors.RunnerError):
        assert any(ancestor in EXAMPLES for ancestor in kind.__mro__[:-1]), kind


def test_the_envelope_is_that_of_openai() -> None:
    fault = errors.InvalidParameter(FieldFault("messages[0].role", "is missing"), FieldFault("n", "is 0"))
    assert json.loads(encode(refusal_of(fault))) == {
        "error": {
            "message": "messages[0].role: is missing; n: is 0",
            "type": "invalid_request_error",
            "param": "messages[0].role",
            "code": "invalid_parameter",
        }
    }
    kinds = {
        envelope(Refusal(status=status, code="c", message="m"))["error"]["type"]: status
        for status in (401, 403, 429, 503)
    }
    assert set(kinds) == {"authentication_error", "permission_error", "rate_limit_error", "server_error"}


@pytest.mark.parametrize(
    ("retry_after_s", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.1, "2"), (59.0, "59")]
)
def test_who_may_come_back_is_told_when(retry_after_s: float, header: str) -> None:
    refusal = refusal_of(errors.QueueFull("x", retry_after_s=retry_after_s))
    assert dict(refusal.headers)["retry-after"] == header


def test_nobody_else_is() -> None:
    assert "retry-after" not in dict(refusal_of(errors.ModelNotFound("x")).headers)


def test_N21_every_error_is_json_that_is_not_sniffed() -> None:
    headers = dict(refusal_of(errors.StoreError("x")).headers)
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"


def test_N21_an_unknown_error_tells_nothing() -> None:
    for error in (
        RuntimeError("secret"),
        OSError(28, "secret", "/etc/passwd"),
        KeyError("secret"),
        InternalServerError("secret"),
    ):
        assert refusal_of(error) == INTERNAL_ERROR
        assert status_of(error) == 500


def test_errors_of_http_keep_their_status_and_lose_their_prose() -> None:
    assert refusal_of(NotFound("secret")).code == "not_found"
    assert refusal_of(BadRequest("secret")).message == "Bad Request"
    assert refusal_of(ImATeapot("secret")).status == 418
    not_allowed = refusal_of(MethodNotAllowed(valid_methods=["POST", "GET"]))
    assert dict(not_allowed.headers)["allow"] == "GET, POST"


def test_N11_a_message_is_valid_unicode_of_bounded_size() -> None:
    refusal = Refusal(status=400, code="c", message="\ud800 \x00 \u2028", param="\udfff")
    error = json.loads(encode(refusal).decode("utf-8", "strict"))["error"]
    assert (error["message"], error["param"]) == ("? \x00 \u2028", "?")
    for length, expected in ((4095, 4095), (4096, 4096), (4097, 4096)):
        message = envelope(Refusal(status=400, code="c", message="x" * length))["error"]["message"]
        assert message is not None and len(message) == expected


def test_of_several_errors_the_one_that_says_most_decides() -> None:
    ours, https, other = errors.QueueFull("x"), NotFound(), ValueError("x")
    group = ExceptionGroup("", [other, ExceptionGroup("", [https, ExceptionGroup("", [ours])])])
    assert leading_error(group) is ours
    assert leading_error(ExceptionGroup("", [other, https])) is https
    assert leading_error(ExceptionGroup("", [other])) is other
    assert leading_error(ours) is ours
    assert isinstance(leading_error(BaseExceptionGroup("", [trio.TooSlowError()])), trio.TooSlowError)
