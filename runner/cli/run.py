"""`runner run MODEL [PROMPT…]`: ask once, answer what is piped in, or chat."""

from __future__ import annotations

import sys

import click

from runner.cli.connect import connect_or_start, host_option


@click.command()
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1))
@click.option("--top-k", type=click.IntRange(0))
@click.option("--seed", type=int)
@click.option("--max-tokens", type=click.IntRange(1), help="End the answer after this many tokens.")
@click.option(
    "--keep-alive", metavar="DURATION", help="How long the model stays loaded afterwards; -1 for ever."
)
@click.option("--verbose", "-v", is_flag=True, help="Print token counts and rates after each answer.")
@host_option
def run(
    model: str,
    prompt: tuple[str, ...],
    system: str | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    max_tokens: int | None,
    keep_alive: str | None,
    verbose: bool,
    host: str | None,
) -> None:
    """Ask MODEL once when there is a PROMPT or piped input, else chat with it.

    Piped input is appended to the prompt. A daemon is started in the background when none runs.
    """
    from runner.cli.chat import Conversation, interactive

    options = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "max_tokens": max_tokens,
        "keep_alive": keep_alive,
    }
    conversation = Conversation(
        client=connect_or_start(host),
        model=model,
        system=system,
        options={name: value for name, value in options.items() if value is not None},
        is_verbose=verbose,
    )
    text = _one_shot_prompt(prompt)
    if text is not None:
        conversation.ask(text)
    else:
        interactive(conversation)


def _one_shot_prompt(words: tuple[str, ...]) -> str | None:
    """Arguments and piped input, two newlines between them; None when neither is there."""
    parts = [" ".join(words)] if words else []
    if not sys.stdin.isatty():
        piped = sys.stdin.read()
        if piped.strip():
            parts.append(piped)
        elif not parts:
            raise click.UsageError("no prompt: give one as an argument, pipe one in, or use a terminal")
    return "\n\n".join(parts) if parts else None
