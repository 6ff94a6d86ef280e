"""`runner ctl …`: thin commands over the control API."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import click

from runner.cli.main import LazyGroup

_COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "pull": ("runner.cli.transfer:pull", "Download a model."),
        "push": ("runner.cli.transfer:push", "Upload a model to a registry."),
        "transfers": ("runner.cli.transfer:transfers", "List pulls and pushes under way."),
        "login": ("runner.cli.login:login", "Log in to a registry."),
        "logout": ("runner.cli.login:logout", "Forget the login of a registry."),
        "ls": ("runner.cli.models:ls", "List the models of the store."),
        "inspect": ("runner.cli.models:inspect", "Show one model in detail."),
        "package": ("runner.cli.package:package", "Package GGUF files as a model."),
        "save": ("runner.cli.archive:save", "Write a model into one file."),
        "load": ("runner.cli.archive:load", "Store the models of a file that was saved."),
        "tag": ("runner.cli.models:tag", "Give a model another name."),
        "untag": ("runner.cli.models:untag", "Remove a name, keep the model."),
        "rm": ("runner.cli.models:rm", "Remove names and models."),
        "df": ("runner.cli.disk:df", "Show what models take of the disk."),
        "gc": ("runner.cli.disk:gc", "Remove old content that no model uses."),
        "prune": ("runner.cli.disk:prune", "Remove models without a name, and what no model uses."),
        "verify": ("runner.cli.disk:verify", "Compare content with its digests."),
        "repair": ("runner.cli.disk:repair", "Fetch what is damaged of a model again."),
        "ps": ("runner.cli.workers:ps", "List loaded models."),
        "start": ("runner.cli.workers:start", "Load a model before the first request."),
        "unload": ("runner.cli.workers:unload", "Free the memory of models."),
        "crashes": ("runner.cli.crashes:crashes", "List the latest deaths of workers."),
        "unquarantine": ("runner.cli.crashes:unquarantine", "Load a model again that crashed the engine."),
        "configure": ("runner.cli.configure:configure", "Set what one model is loaded and sampled with."),
        "plan": ("runner.cli.explain:plan", "Show what loading a model would do, without doing it."),
        "why": ("runner.cli.explain:why", "Show why a model or a request fared as it did."),
        "status": ("runner.cli.daemon:status", "Show the state of the daemon."),
        "version": ("runner.cli.daemon:version", "Show versions of client and daemon."),
        "shutdown": ("runner.cli.daemon:shutdown", "Stop the daemon."),
        "completion": ("runner.cli.completion:completion", "Print a shell completion script."),
    }
)


@click.command(cls=LazyGroup, commands_at=_COMMANDS)
def ctl() -> None:
    """Manage models and the daemon."""
