"""How commands reach the daemon: the options they share, and completion of model names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from runner.client import Client, find_target
from runner.errors import RunnerError

F = TypeVar("F", bound=Callable[..., Any])

_COMPLETION_TIMEOUT_S = 1.0


def host_option(command: F) -> F:
    """`--host`, for every command that talks to the daemon."""
    return click.option(
        "--host", metavar="ADDRESS", help="Daemon to talk to: host:port, http://host:port or unix:/path."
    )(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def usage_error(text: str) -> click.UsageError:
    """What is wrong with the arguments of the command that runs."""
    return click.UsageError(text, click.get_current_context(silent=True))


def connect(host: str | None) -> Client:
    """A client of the daemon that `--host`, the environment, the socket or the port names."""
    try:
        return Client(find_target(host))
    except ValueError as error:
        where = "--host" if host else "RUNNER_HOST or MODEL_RUNNER_HOST"
        raise usage_error(f"{where}: {error}") from error


def connect_or_start(host: str | None) -> Client:
    """As `connect`; starts a background daemon when none answers and nobody named another one."""
    client = connect(host)
    if client.target.is_explicit or client.is_reachable():
        return client
    from runner.cli.background import start_background_daemon

    return start_background_daemon()


def complete_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the store for the shell; silence when no daemon answers."""
    try:
        client = connect(context.params.get("host"))
        models = client.get("/control/v1/models", timeout_s=_COMPLETION_TIMEOUT_S)
        names = [familiar(tag) for model in models for tag in model["tags"]]
    except (RunnerError, click.UsageError, KeyError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def familiar(tag: str) -> str:
    """A full reference as people write it."""
    return tag.removeprefix("docker.io/").removesuffix(":latest")


def short_id(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
