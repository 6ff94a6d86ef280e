"""`ps`, `start`, `unload`: which models are in memory."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.auto_pull import no_pull_option, with_model
from runner.cli.connect import (
    complete_model,
    connect,
    connect_or_start,
    host_option,
    json_option,
    short_id,
    usage_error,
)
from runner.cli.meters import print_meters
from runner.cli.output import message, print_json, print_table
from runner.units import format_bytes, format_duration


@click.command()
@click.option("--verbose", "-v", "is_verbose", is_flag=True, help="Also what each engine does.")
@json_option
@host_option
def ps(is_verbose: bool, as_json: bool, host: str | None) -> None:
    """List models that are loaded, loading or stopping."""
    status = connect(host).get("/control/v1/ps")
    if as_json:
        print_json(status)
        return
    print_table(
        ("NAME", "ID", "STATE", "PID", "MEMORY", "CONTEXT", "REQUESTS", "WAITING", "UNTIL"),
        [_row(worker) for worker in status["workers"]],
    )
    for worker in status["workers"] if is_verbose else ():
        print_meters(worker)


def _row(worker: dict[str, Any]) -> tuple[str, ...]:
    state = worker["state"]
    if state == "loading":
        state = f"loading {worker['load_progress']:.0%}"
    return (
        worker["model"],
        short_id(worker["model_id"]),
        state,
        str(worker["pid"] or ""),
        format_bytes(worker["resident_bytes"] or worker["reserved_bytes"]),
        str(worker["context_size"]),
        str(worker["running_sequences"]),
        str(worker["waiting"] + worker["waiting_sequences"]),
        _until(worker),
    )


def _until(worker: dict[str, Any]) -> str:
    if worker["expires_in_s"] is not None:
        return f"in {format_duration(worker['expires_in_s'])}" if worker["expires_in_s"] > 0 else "now"
    if worker["leases"] or worker["state"] != "ready":
        return ""
    return "for ever"


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option("--keep-alive", metavar="DURATION", help="How long it stays loaded when idle; -1 for ever.")
@click.option("--ctx", "context_size", type=click.IntRange(min=1), help="Tokens that a sequence must hold.")
@no_pull_option
@json_option
@host_option
def start(
    model: str,
    keep_alive: str | None,
    context_size: int | None,
    no_pull: bool,
    as_json: bool,
    host: str | None,
) -> None:
    """Load MODEL before the first request; returns when it is ready.

    A model that is not in the store is pulled first.
    """
    wishes = {"keep_alive": keep_alive, "context_size": context_size}
    given = {name: wish for name, wish in wishes.items() if wish is not None}
    client = connect_or_start(host)
    worker = with_model(
        client,
        model,
        lambda name: client.post("/control/v1/start", {"model": name, **given}),
        may_pull=not no_pull,
        is_silent=as_json,
    )
    if as_json:
        print_json(worker)
    else:
        took = f" in {format_duration(worker['load_s'])}" if worker["load_s"] is not None else ""
        message(f"{worker['model']} is loaded{took}, context {worker['context_size']}")


@click.command()
@click.argument("models", nargs=-1, shell_complete=complete_model)
@click.option("--all", "every", is_flag=True, help="Every model that is not in use.")
@json_option
@host_option
def unload(models: tuple[str, ...], every: bool, as_json: bool, host: str | None) -> None:
    """Free the memory of MODELS that are not in use; exits with 1 when one was."""
    if bool(models) == every:
        raise usage_error("name models, or use --all")
    report = connect(host).post("/control/v1/unload", {"all": True} if every else {"models": list(models)})
    if as_json:
        print_json(report)
    else:
        for name in report["unloaded"]:
            message(f"unloaded {name}")
        for name in report["in_use"]:
            message(f"{name} is in use and stays")
        if not report["unloaded"] and not report["in_use"]:
            message("nothing was loaded")
    if report["in_use"]:
        raise SystemExit(1)
