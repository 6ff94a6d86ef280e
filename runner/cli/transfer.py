"""`pull`, `push`, `transfers`: models between the store and registries. The daemon moves them; here is shown
how far it is."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import click

from runner.cli.connect import (
    complete_model,
    connect,
    connect_or_start,
    familiar,
    host_option,
    json_option,
    short_id,
    usage_error,
)
from runner.cli.output import message, print_json, print_line, print_table
from runner.cli.transfer_display import amount, display, shown_name
from runner.client import ApiError, Client
from runner.errors import InvalidReference
from runner.units import format_bytes, format_duration

_HUB = "huggingface.co"
_SECRETS = ("HF_TOKEN", "RUNNER_REGISTRY_PASSWORD", "DOCKER_PASSWORD", "DOCKER_HUB_PASSWORD")
_WRONG_CONTENT = frozenset({"content_mismatch", "invalid_manifest", "invalid_model_file"})
_SECRET_FIELDS = ("username", "password", "bearer_token")
_DONE = {"pull": "pulled", "push": "pushed", "repair": "repaired"}

_NOTHING_TO_DO = {
    "pull": "is in the store; nothing had to be fetched",
    "push": "is in the registry; nothing had to be sent",
    "repair": "is sound",
}

quiet_option = click.option("--quiet", "-q", is_flag=True, help="Show no progress; print the model's id.")


@click.command()
@click.argument("reference", shell_complete=complete_model)
@quiet_option
@json_option
@host_option
def pull(reference: str, quiet: bool, as_json: bool, host: str | None) -> None:
    """Download a model: REFERENCE is its name in a registry (docker.io/ai/ without one), or in hf.co.

    NAME@sha256:… takes just that manifest, and gives it no tag. What is there already is not fetched again,
    and a pull that was interrupted goes on where it ended.
    """
    body = pull_body(reference)
    client = connect_or_start(host)
    result = pulled(client, body, is_silent=quiet or as_json, as_json=as_json)
    if quiet and not as_json:
        click.echo(result["model_id"])


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.argument("target", required=False)
@quiet_option
@json_option
@host_option
def push(model: str, target: str | None, quiet: bool, as_json: bool, host: str | None) -> None:
    """Upload MODEL to the registry that its name says, or to TARGET. MODEL may be an id when TARGET is given.

    Only parts that the registry does not have are sent.
    """
    body: dict[str, Any] = {"reference": model, **given_for(target or model)}
    if target is not None:
        body["target"] = target
    client = connect(host)
    result = follow(
        client,
        "push",
        "/control/v1/push",
        body,
        name=target or model,
        is_silent=quiet or as_json,
        as_json=as_json,
    )
    if quiet and not as_json:
        click.echo(result["model_id"])


@click.command()
@json_option
@host_option
def transfers(as_json: bool, host: str | None) -> None:
    """List pulls and pushes that are under way or wait."""
    running = connect(host).get("/control/v1/transfers")
    if as_json:
        print_json(running)
        return
    print_table(
        ("NAME", "DIRECTION", "STAGE", "DONE", "SIZE", "WAITING", "SINCE"), [_row(one) for one in running]
    )


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    progress = one["progress"]
    position = progress["queue_position"]
    total = progress["total_bytes"]
    return (
        familiar(one["reference"]),
        progress["direction"],
        progress["phase"] if position is None else f"{progress['phase']} ({position})",
        f"{progress['done_bytes'] / total:.0%}" if total else "",
        format_bytes(total) if total else "",
        str(one["waiters"]),
        format_duration(one["started_ago_s"]),
    )


def pull_body(reference: str) -> dict[str, Any]:
    """What the daemon is asked; raises a usage error for what names no place to pull from."""
    from runner.oci.reference import ModelName  # not needed by the commands that only talk

    try:
        meant = ModelName.parse(reference)
    except InvalidReference as error:
        raise usage_error(str(error)) from error
    if meant.reference is None:
        raise usage_error(f"{reference!r} does not say where the model is; write NAME@{meant.digest}")
    return {"reference": reference, **given_for(reference)}


def given_for(name: str) -> dict[str, str]:
    """Credentials of this environment that belong to the registry of this name, and to no other.

    The daemon has an environment of its own, which may be another, and reads login files itself.
    """
    if not any(os.environ.get(variable) for variable in _SECRETS):
        return {}
    from runner.oci.reference import ModelName

    try:
        reference = ModelName.parse(name).reference
    except InvalidReference:  # the daemon tells what is wrong with it
        return {}
    if reference is None:
        return {}
    if reference.registry == _HUB:
        token = os.environ.get("HF_TOKEN", "")
        return {"bearer_token": token} if token else {}
    from runner.registry.credentials import CredentialSource

    found = CredentialSource(os.environ, None).find(reference.registry)
    if found is None or found.username is None or found.password is None:
        return {}
    return {"username": found.username, "password": found.password}


def pulled(client: Client, body: Mapping[str, Any], *, is_silent: bool, as_json: bool) -> dict[str, Any]:
    """The result of a pull that is followed here."""
    name = body["reference"]
    return follow(client, "pull", "/control/v1/pull", body, name=name, is_silent=is_silent, as_json=as_json)


def follow(
    client: Client,
    verb: str,
    path: str,
    body: Mapping[str, Any],
    *,
    name: str,
    is_silent: bool,
    as_json: bool,
) -> dict[str, Any]:
    """The last line of a transfer, once it has succeeded. Its failure is raised, after telling what is kept.

    `verb`: `pull`, `push` or `repair`. With `as_json` every line is printed as it comes.
    """
    started_s = time.monotonic()
    latest: dict[str, Any] | None = None
    body = without_secrets(client, body)
    try:
        with (
            display(verb, shown_name(name), is_silent=is_silent) as shown,
            closing(client.lines(path, body)) as lines,
        ):
            for line in lines:
                if as_json:
                    print_line(line)
                if line["type"] == "progress":
                    latest = line
                    shown.show(line)
        result = line
    except (KeyboardInterrupt, SystemExit):
        _tell_kept("interrupted", verb, name, latest)
        raise
    except ApiError as error:
        if as_json:
            print_line({"type": "error", "error": {"code": error.error_code, "message": str(error)}})
        elif not is_silent and latest is not None and latest["done_bytes"] and _may_go_on(error):
            _tell_kept("not finished", verb, name, latest)
        raise
    if not is_silent:
        message(_told(verb, shown_name(name), result, time.monotonic() - started_s))
    return result


def without_secrets(client: Client, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """K08: a connection to a daemon is not encrypted, so that secrets are for one of this machine only."""
    if client.target.is_local or not body.keys() & set(_SECRET_FIELDS):
        return body
    message(f"credentials of this environment are not sent unencrypted to {client.target}")
    return {name: value for name, value in body.items() if name not in _SECRET_FIELDS}


def _may_go_on(error: ApiError) -> bool:
    """What is wrong with the content itself is not kept."""
    return error.error_code not in _WRONG_CONTENT


def _tell_kept(how: str, verb: str, name: str, latest: Mapping[str, Any] | None) -> None:
    """That nothing is lost, and what to do."""
    if latest is None or not latest["done_bytes"]:
        message(f"{how}; nothing was transferred yet")
    elif verb == "push":
        message(
            f"{how} at {amount(latest)}; parts that the registry has whole are not sent again by the same "
            f"command"
        )
    else:
        again = f"`runner ctl {verb} {name}` goes on from there"
        message(f"{how} at {amount(latest)}; what was fetched is kept, and {again}")


def _told(verb: str, name: str, result: Mapping[str, Any], elapsed_s: float) -> str:
    size = format_bytes(result["size_bytes"])
    digest = short_id(result["model_id"])
    if result["was_cached"]:
        return f"{name} ({digest}, {size}) {_NOTHING_TO_DO[verb]}"
    moved = result["transferred_bytes"]
    rate = f", {format_bytes(int(moved / elapsed_s))}/s" if elapsed_s >= 1 else ""
    amount_moved = f"{format_bytes(moved)} of " if format_bytes(moved) != size else ""
    return f"{_DONE[verb]} {name} ({digest}, {amount_moved}{size} in {format_duration(elapsed_s)}{rate})"
