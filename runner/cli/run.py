"""`runner run MODEL [PROMPT…]`: ask once, answer what is piped in, or chat."""

from __future__ import annotations

import sys
from typing import Any

import click

from runner.cli.auto_pull import no_pull_option, with_model
from runner.cli.connect import complete_model, connect_or_start, host_option, usage_error
from runner.client import model_path


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.argument("prompt", nargs=-1)
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("--temperature", type=float, help="0 always takes the likeliest token.")
@click.option(
    "--top-p", type=float, help="Sample from the likeliest tokens that together have this probability."
)
@click.option("--top-k", type=int, help="Sample from so many of the likeliest tokens; 0 is all.")
@click.option("--min-p", type=float, help="Leave out tokens less likely than this share of the likeliest.")
@click.option("--seed", type=int, help="The same seed and settings give the same answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT; may be repeated.")
@click.option("--max-tokens", type=int, help="End the answer after so many tokens.")
@click.option(
    "--keep-alive", metavar="DURATION", help="How long the model stays loaded afterwards; -1 for ever."
)
@click.option("--verbose", "-v", is_flag=True, help="Print token counts and rates after each answer.")
@no_pull_option
@host_option
def run(
    model: str,
    prompt: tuple[str, ...],
    system: str | None,
    verbose: bool,
    no_pull: bool,
    host: str | None,
    **options: Any,
) -> None:
    """Ask MODEL once when there is a PROMPT or piped input, else chat with it.

    Piped input is appended to the prompt. A PROMPT that begins with a dash comes after `--`. A model that is
    not in the store is pulled first; a daemon is started in the background when none runs.
    """
    from runner.cli.chat import Conversation
    from runner.cli.session import interactive

    client = connect_or_start(host)
    known = with_model(  # before piped input is taken
        client,
        _not_empty(model),
        lambda name: client.get(f"/v1/models/{model_path(name)}"),
        may_pull=not no_pull,
    )
    conversation = Conversation(
        client=client,
        model=known["id"] if "@" in model else model,  # the digest may be that of an index
        model_id=known["id"],
        system=system,
        options={name: value for name, value in options.items() if value is not None and value != ()},
        is_verbose=verbose,
    )
    text = _one_shot_prompt(prompt)
    if text is not None:
        conversation.ask(text)
    else:
        interactive(conversation)


def _not_empty(model: str) -> str:
    if not model:
        raise usage_error("the name of the model is empty")
    return model


def _one_shot_prompt(words: tuple[str, ...]) -> str | None:
    """Arguments and piped input, two newlines between them; None when neither is there."""
    parts = [" ".join(words)] if words else []
    if sys.stdin is None or not sys.stdin.isatty():  # None: started with it closed
        piped = _piped_input()
        if piped.strip():
            parts.append(piped)
        elif not parts:
            raise usage_error("no prompt: give one as an argument, pipe one in, or use a terminal")
    return "\n\n".join(parts) if parts else None


def _piped_input() -> str:
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise usage_error(f"the piped input is not UTF-8 text: byte {error.start} is wrong") from error
