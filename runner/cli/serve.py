"""`runner serve`: the daemon in the foreground."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from runner.config import OPTIONS, Option, resolve


def _with_options(command: Any) -> Any:
    """One flag per setting; absent flags are None, so that the resolver sees which were given."""
    for option in reversed(OPTIONS):
        command = _flag(option)(command)
    return command


def _flag(option: Option) -> Any:
    name = "--" + option.name.replace("_", "-")
    return click.option(name, option.name, metavar="VALUE", help=f"{option.help} [{option.environment}]")


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
        from runner.cli.output import print_table

        settings = resolved.settings
        rows = [
            (option.name, _shown(settings, option.name), resolved.origins[option.name].value)
            for option in OPTIONS
        ]
        print_table(("SETTING", "VALUE", "FROM"), rows)
        return
    from runner.daemon import run_daemon

    sys.exit(run_daemon(resolved.settings))


def _shown(settings: Any, name: str) -> str:
    for field in (name, f"{name}_s", f"{name}_bytes"):
        if hasattr(settings, field):
            value = getattr(settings, field)
            return ",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
    raise AssertionError(f"setting {name} has no field")
