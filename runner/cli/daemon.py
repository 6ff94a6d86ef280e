"""`status`, `version`, `shutdown`."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

import click

from runner.cli.connect import connect, host_option, json_option
from runner.cli.output import harmless_line, message, print_json, print_table
from runner.client import Client, DaemonUnreachable
from runner.units import format_bytes, format_duration

if TYPE_CHECKING:
    import psutil

_SHUTDOWN_DEADLINE_S = 45.0  # the daemon drains for 30 s, then ends what is left
_POLL_S = 0.05
_START_S = 60.0  # between the start of a process and that of the daemon in it


@click.command()
@json_option
@host_option
def status(as_json: bool, host: str | None) -> None:
    """Show the daemon: addresses, store, memory budget, actors."""
    daemon = connect(host).get("/control/v1/status")
    if as_json:
        print_json(daemon)
        return
    for label, value in _status_lines(daemon):
        click.echo(f"{label:<12}{harmless_line(value)}")
    click.echo()
    print_table(
        ("ACTOR", "STATE", "RESTARTS", "QUEUED"),
        [
            (actor["name"], actor["state"], str(actor["restarts"]), str(actor["queued"]))
            for actor in daemon["actors"]
        ],
    )


def _status_lines(daemon: dict[str, Any]) -> list[tuple[str, str]]:
    state = "draining" if daemon["is_draining"] else "running"
    lines = [
        ("Daemon", f"{state}, pid {daemon['pid']}, up {format_duration(daemon['uptime_s'])}"),
        ("Version", f"{daemon['version']}, engine {daemon['engine']}"),
        ("Listening", ", ".join(daemon["listeners"])),
        ("Store", daemon["store"]),
    ]
    if daemon["log_file"]:
        lines.append(("Log", daemon["log_file"]))
    if daemon["idle_exit_in_s"] is not None:
        lines.append(("Ends in", f"{format_duration(daemon['idle_exit_in_s'])} without clients"))
    return lines + [
        (
            f"Memory {budget['device']}",
            f"{format_bytes(budget['reserved_bytes'])} of {format_bytes(budget['budget_bytes'])} reserved",
        )
        for budget in daemon["budgets"]
    ]


@click.command()
@json_option
@host_option
def version(as_json: bool, host: str | None) -> None:
    """Show versions of this command and of the daemon."""
    client_version = {"version": package_version("runner"), "python": platform.python_version()}
    try:
        daemon_version = connect(host).get("/control/v1/version")
    except DaemonUnreachable:
        daemon_version = None
    if as_json:
        print_json({"client": client_version, "daemon": daemon_version})
        return
    click.echo(f"Client:  {client_version['version']} (Python {client_version['python']})")
    if daemon_version is None:
        click.echo("Daemon:  not running")
    else:
        engine = f"{daemon_version['engine']} {daemon_version['engine_version']}"
        line = f"Daemon:  {daemon_version['version']} (Python {daemon_version['python']}, {engine})"
        click.echo(harmless_line(line))


@click.command()
@host_option
def shutdown(host: str | None) -> None:
    """Stop the daemon: it finishes running requests for up to 30 s; returns when it has ended."""
    client = connect(host)
    process = _process_of(client.get("/control/v1/status"))
    client.post("/control/v1/shutdown")
    deadline_s = time.monotonic() + _SHUTDOWN_DEADLINE_S
    while _listens(client) or (process is not None and _runs(process)):
        if time.monotonic() > deadline_s:
            raise click.ClickException("the daemon is still finishing requests")
        time.sleep(_POLL_S)
    message("the daemon has ended")


def _process_of(status: dict[str, Any]) -> psutil.Process | None:
    """The daemon's process; None when it is out of sight, in a container or behind a forwarded port.

    There its number may be that of a process here, which then was not started when the daemon was.
    """
    import psutil

    try:
        process = psutil.Process(status["pid"])
        age_s = time.time() - process.create_time()
    except psutil.Error:
        return None
    return process if abs(age_s - status["uptime_s"]) < _START_S else None


def _runs(process: psutil.Process) -> bool:
    """One that ended and was not reaped yet does not."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _listens(client: Client) -> bool:
    try:
        return client.is_reachable()
    except DaemonUnreachable:  # busy with its end
        return True
