"""`status`, `version`, `shutdown`, `completion`."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version as package_version
from typing import Any

import click

from runner.cli.connect import connect, host_option, json_option
from runner.cli.output import harmless, message, print_json, print_table
from runner.client import Client, DaemonUnreachable
from runner.units import format_bytes, format_duration

_SHUTDOWN_DEADLINE_S = 45.0


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
        click.echo(f"{label:<12}{harmless(value, keep_newlines=False)}")
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
        click.echo(f"Daemon:  {daemon_version['version']} (Python {daemon_version['python']}, {engine})")


@click.command()
@host_option
def shutdown(host: str | None) -> None:
    """Stop the daemon: it finishes running requests for up to 30 s; returns when it has ended."""
    client = connect(host)
    pid = client.get("/control/v1/status")["pid"]
    client.post("/control/v1/shutdown")
    _wait_until_gone(client, pid if client.target.is_local else None)
    message("the daemon has ended")


def _wait_until_gone(client: Client, pid: int | None) -> None:
    """Until the process is gone, or, where it is out of sight, until nothing listens any more."""
    deadline = time.monotonic() + _SHUTDOWN_DEADLINE_S
    while time.monotonic() < deadline:
        if not client.is_reachable() and (pid is None or not _is_alive(pid)):
            return
        time.sleep(0.05)
    message("the daemon is still finishing requests")
    raise SystemExit(1)


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not reaped yet does not."""
    import psutil

    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return False
    return status != psutil.STATUS_ZOMBIE


_RC_FILES = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/completions/runner.fish"}


@click.command()
@click.argument("shell", type=click.Choice(sorted(_RC_FILES)))
def completion(shell: str) -> None:
    """Print the completion script for SHELL; `eval` it, or write it to your shell's start-up file."""
    from click.shell_completion import get_completion_class

    from runner.cli.main import runner

    completion_class = get_completion_class(shell)
    if completion_class is None:  # click.Choice and click agree on the names
        raise click.UsageError(f"{shell} is not supported")
    click.echo(completion_class(runner, {}, "runner", "_RUNNER_COMPLETE").source())
