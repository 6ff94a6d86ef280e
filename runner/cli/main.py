"""The command tree and the entry point. Subcommands are imported when they are called, since start-up is paid
on every TAB. What errors look like is in `failures.py`."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType, MappingProxyType
from typing import Any, NoReturn

import click

EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group whose commands are `module:attribute` strings until one is asked for."""

    def __init__(self, *, commands_at: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(**options)
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

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, and an unknown name is told what is near it."""
        if args and not args[0].startswith("-") and args[0] not in self._commands_at:
            raise click.UsageError(f"no such command {args[0]!r}{self._near(args[0])}", context)
        return super().resolve_command(context, args)

    def _near(self, name: str) -> str:
        from difflib import get_close_matches

        near = get_close_matches(name, self._commands_at, n=1)
        return f"; did you mean {near[0]!r}?" if near else ""

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


@click.command(
    cls=LazyGroup,
    commands_at=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Commands look for the daemon at --host, RUNNER_HOST, MODEL_RUNNER_HOST, its
unix socket, and port 12434 of this machine.

\b
Exit status: 0 done, 1 error, 2 wrong usage, 3 no daemon answers,
4 no such model, 130 interrupted.""",
)
@click.version_option(package_name="runner", message="runner %(version)s")
def runner() -> None:
    """Pull, store and serve language models on this machine."""


def main() -> NoReturn:
    """Run the command of the process's arguments, and end with its status."""
    try:
        status = _run()
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    finally:
        with suppress(KeyboardInterrupt):
            _end_silently_on_interrupt()
    sys.exit(status)


def _run() -> int:
    _take_signals()
    try:
        _prepare_output()
        if "_RUNNER_COMPLETE" in os.environ:
            importlib.import_module("runner.cli.completion").register()
        return runner.main(standalone_mode=False, prog_name="runner") or 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except Exception as error:
        if os.environ.get("RUNNER_TRACEBACK"):
            raise
        from runner.cli.failures import report

        return report(error)


def _prepare_output() -> None:
    """Text that the terminal's encoding lacks is shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):  # None: started with it closed
            stream.reconfigure(errors="backslashreplace")


def _take_signals() -> None:
    """Signals that end us pass through every `finally`: terminals are restored, connections closed."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not when whoever started us said to ignore it
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)  # a second one does not wait for what the first one waits for
    raise SystemExit(128 + number)


def _end_silently_on_interrupt() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
