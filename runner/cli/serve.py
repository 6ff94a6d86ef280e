"""`runner serve`: the daemon in the foreground."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from runner.config import OPTIONS, Option, Origin, Resolved, resolve


def _with_options(command: Any) -> Any:
    """One flag per setting; absent flags are None, so that the resolver sees which were given."""
    for option in reversed(OPTIONS):
        command = _flag(option)(command)
    return command


def _flag(option: Option) -> Any:
    name = "--" + option.name.replace("_", "-")
    return click.option(
        name,
        option.name,
        metavar="VALUE",
        help=f"{option.help} [{option.environment}]",
    )


@click.command()
@click.option("--config", "file", type=click.Path(path_type=Path), help="settings file instead of the user's")
@click.option("--show-config", is_flag=True, help="print every setting and where it comes from, and end")
@_with_options
def serve(file: Path | None, show_config: bool, **flags: str | None) -> None:
    """Run the daemon in the foreground until SIGTERM, SIGINT or `runner ctl shutdown`.

    A flag beats its environment variable beats config.toml beats the default.
    """
    resolved = resolve(flags, os.environ, file)
    if show_config:
        _show(resolved)
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the daemon takes it over: end at once
    from runner.daemon import run_daemon

    said = {name for name, origin in resolved.origins.items() if origin is not Origin.DEFAULT}
    sys.exit(run_daemon(resolved.settings, said))


def _show(resolved: Resolved) -> None:
    from runner.cli.output import print_table

    values = resolved.by_option()
    print_table(
        ("SETTING", "VALUE", "FROM"),
        [
            (option.name, _shown(values[option.name]), resolved.origins[option.name].value)
            for option in OPTIONS
        ],
    )


def _shown(value: Any) -> str:
    match value:
        case None:
            return ""
        case tuple():
            return ",".join("=".join(map(str, one)) if isinstance(one, tuple) else one for one in value)
        case float():
            return "never" if value == math.inf else f"{value:g} s"
        case _:
            return str(value)
