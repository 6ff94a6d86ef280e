"""`plan` and `why`: what the daemon would do with a model, and why it did what it did."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from runner.cli.connect import complete_model, connect, host_option, json_option
from runner.cli.output import harmless_line, print_json, print_table
from runner.client import ApiError, Client
from runner.errors import ModelNotFound, RequestNotFound
from runner.units import format_bytes, format_duration

_BYTES = "_bytes"
_SECONDS = "_s"

_WAITS = {
    "cooling": "for the delay after a crash",
    "sizing": "while its footprint was determined",
    "queued": "for room",
    "loading": "while it loaded",
    "ready": "for a place among its requests, or a larger context",
    "yielding": "while the model gave way to another",
    "stopping": "for a process to end",
}


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option("--ctx", "context_size", type=click.IntRange(min=1), help="Tokens that a sequence must hold.")
@json_option
@host_option
def plan(model: str, context_size: int | None, as_json: bool, host: str | None) -> None:
    """Show what a request for MODEL would meet now, without doing anything."""
    query = f"model={quote(model, safe='')}"
    if context_size is not None:
        query += f"&context_size={context_size}"
    report = connect(host).get(f"/control/v1/plan?{query}")
    if as_json:
        print_json(report)
    else:
        _print_plan(report)


def _print_plan(report: dict[str, Any]) -> None:
    _say(f"{report['model']} is {_state(report['state'])}: {report['why']}")
    _say(f"Context {report['context_size']} tokens, sizes {report['basis'] or 'unknown'}")
    _say(_expectation(report))
    click.echo()
    print_table(
        ("DEVICE", "NEEDED", "FREE", "ENDING", "RESERVED", "BUDGET", "MISSING"),
        [_device_row(device) for device in report["devices"]],
    )
    for device in report["devices"]:
        parts = " + ".join(f"{one['part']} {format_bytes(one['size_bytes'])}" for one in device["parts"])
        if parts:
            _say(f"{device['device']}: {parts}")
    if report["victims"]:
        click.echo()
        print_table(
            ("WOULD GO", "WHEN", "FREES", "IDLE", "REQUESTS", "RELOAD", "COST"),
            [_victim_row(victim) for victim in report["victims"]],
        )
    if report["obstacles"]:
        click.echo()
        print_table(
            ("STAYS", "HOLDS", "REQUESTS", "AT MOST", "BECAUSE"),
            [_obstacle_row(obstacle) for obstacle in report["obstacles"]],
        )


def _expectation(report: dict[str, Any]) -> str:
    measured = "measured" if report["is_load_measured"] else "estimated"
    parts = [f"Loading takes about {format_duration(report['expected_load_s'])} ({measured})"]
    match report["verdict"]:
        case "ready":
            parts = ["A request is served at once"]
        case "refuse":
            parts = ["A request is refused at once"]
        case _ if report["expected_wait_s"] is None:
            parts.append("how long a request waits depends on the models that stay")
        case _:
            parts.append(f"a request waits about {format_duration(report['expected_wait_s'])}")
    if report["position"]:
        parts.append(f"it would be number {report['position']} in line")
    return "; ".join(parts)


def _device_row(device: dict[str, Any]) -> tuple[str, ...]:
    sizes = ("needed", "free", "leaving", "reserved", "budget")
    missing = device["missing_bytes"]
    return (
        device["device"],
        *(format_bytes(device[f"{name}{_BYTES}"]) for name in sizes),
        format_bytes(missing) if missing else "",
    )


def _victim_row(victim: dict[str, Any]) -> tuple[str, ...]:
    return (
        victim["model"],
        victim["when"],
        format_bytes(victim["freed_bytes"]),
        "" if victim["idle_s"] is None else format_duration(victim["idle_s"]),
        str(victim["running"] + victim["waiting"]),
        format_duration(victim["reload_s"]),
        format_duration(victim["cost_s"]),
    )


def _obstacle_row(obstacle: dict[str, Any]) -> tuple[str, ...]:
    stays_s = obstacle["stays_for_s"]
    return (
        obstacle["model"],
        format_bytes(obstacle["held_bytes"]),
        str(obstacle["running"] + obstacle["waiting"]),
        "" if stays_s is None else format_duration(max(0.0, stays_s)),
        obstacle["why"],
    )


@click.command()
@click.argument("subject", metavar="MODEL|REQUEST_ID", shell_complete=complete_model)
@json_option
@host_option
def why(subject: str, as_json: bool, host: str | None) -> None:
    """Show why a model was loaded, evicted or refused, or why a request waited.

    A request is named by the id of its answer, or by the x-request-id it was sent with or given.
    """
    report = _explained(connect(host), subject)
    if as_json:
        print_json(report)
        return
    _say(f"{report['model']} is {_state(report['state'])}")
    for request in report["requests"]:
        _print_request(request)
    for decision in report["decisions"]:
        _print_decision(decision)
    if not report["requests"] and not report["decisions"]:
        _say("nothing was decided about it since the daemon started")


def _explained(client: Client, subject: str) -> Any:
    """About the request of this name, else about the model; what is neither is told as a model."""
    name = quote(subject, safe="")
    try:
        return client.get(f"/control/v1/why?request={name}")
    except ApiError as error:
        if error.error_code != RequestNotFound.code:
            raise
        not_a_request = error
    try:
        return client.get(f"/control/v1/why?model={name}")
    except ApiError as error:
        if error.error_code == ModelNotFound.code and _looks_like_a_request(subject):
            raise not_a_request from None
        raise


def _looks_like_a_request(subject: str) -> bool:
    return subject.startswith(("req_", "chatcmpl-", "cmpl-", "resp_", "msg_"))


def _print_request(request: dict[str, Any]) -> None:
    called = f" ({request['label']})" if request["label"] not in (None, request["request_id"]) else ""
    ago = format_duration(request["asked_ago_s"])
    _say(f"{ago} ago  request {request['request_id']}{called} for {request['model']}: {_ending(request)}")
    for wait in request["waits"]:
        _say(f"    {format_duration(wait['waited_s'])} {_WAITS.get(wait['state'], wait['state'])}")


def _ending(request: dict[str, Any]) -> str:
    waited = format_duration(request["waited_s"])
    ahead = f", {request['ahead']} before it" if request["ahead"] else ""
    match request["outcome"]:
        case "waiting":
            return f"has waited {waited}{ahead}"
        case "running":
            return f"runs since {format_duration(request['ran_s'])}, after {waited} of waiting{ahead}"
        case "refused":
            return f"refused after {waited}: {request['refusal']}"
        case "left":
            return f"its client left after {waited}{ahead}"
    ran = format_duration(request["ran_s"] or 0.0)
    return f"waited {waited}{ahead}, ran {ran}"


def _print_decision(decision: dict[str, Any]) -> None:
    times = f", {decision['times']} times" if decision["times"] > 1 else ""
    ago = format_duration(decision["ago_s"])
    _say(f"{ago} ago  {decision['action']} {decision['model']}: {decision['why']}{times}")
    numbers = ", ".join(_number(name, value) for name, value in decision["numbers"].items())
    if numbers:
        _say(f"    {numbers}")


def _number(name: str, value: float) -> str:
    """`needed_bytes_CUDA0` and 5e9 as `needed on CUDA0 4.7 GiB`."""
    if _BYTES in name:
        what, _, device = name.partition(_BYTES)
        on = f" on {device.removeprefix('_')}" if device else ""
        return f"{_words(what)}{on} {format_bytes(int(value))}"
    if name.endswith(_SECONDS):
        return f"{_words(name.removesuffix(_SECONDS))} {format_duration(max(0.0, value))}"
    return f"{_words(name)} {value:g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _state(state: str) -> str:
    return {"ready": "loaded", "queued": "waiting for room"}.get(state, state)


def _say(text: str) -> None:
    click.echo(harmless_line(text))
