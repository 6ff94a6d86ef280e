"""The command tree. Subcommands are imported when they are called, since start-up is paid on every TAB."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import MappingProxyType

import click

from runner.client import ApiError, DaemonUnreachable
from runner.errors import ModelNotFound, RunnerError

EXIT_ERROR = 1
EXIT_UNREACHABLE = 3
EXIT_MODEL_NOT_FOUND = 4


class LazyGroup(click.Group):
    """A group whose commands are `module:attribute` strings until one is asked for."""

    def __init__(self, *, commands_at: Mapping[str, tuple[str, str]], **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]  # click's own keyword options
        self._commands_at = commands_at

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self._commands_at)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        place = self._commands_at.get(name)
        if place is None:
            return None
        module, _, attribute = place[0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._commands_at.items()])


_COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "run": ("runner.cli.run:run", "Ask a model once, or chat with it."),
        "serve": ("runner.cli.serve:serve", "Run the daemon in the foreground."),
        "ctl": ("runner.cli.ctl:ctl", "Manage models and the daemon."),
    }
)


@click.command(cls=LazyGroup, commands_at=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="runner", message="runner %(version)s")
def runner() -> None:
    """Pull, store and serve language models on this machine."""


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 error, 2 usage, 3 no daemon, 4 no such model, 130 interrupted."""
    try:
        sys.exit(runner.main(standalone_mode=False, prog_name="runner"))
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output left
        sys.stderr.close()
        sys.exit(EXIT_ERROR)
    except RunnerError as error:
        sys.exit(_report(error))


def _report(error: RunnerError) -> int:
    from runner.cli.output import message

    message(f"error: {error}")
    match error:
        case DaemonUnreachable():
            message("hint: start one with `runner serve`, or name another with --host")
            return EXIT_UNREACHABLE
        case ApiError(error_code="model_not_found") | ModelNotFound():
            message("hint: `runner ctl ls` lists what is there")
            return EXIT_MODEL_NOT_FOUND
        case ApiError(retry_after_s=float() as retry_after_s):
            message(f"hint: try again in {retry_after_s:.0f} s")
    return EXIT_ERROR


if __name__ == "__main__":
    main()
