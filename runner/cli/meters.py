"""What an engine does, for people: the second half of `ps --verbose`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.output import harmless_line


def print_meters(worker: dict[str, Any]) -> None:
    """One worker of `/control/v1/ps`; names the model, and says so when it has computed nothing yet."""
    meters = worker["meters"]
    click.echo(f"\n{harmless_line(worker['model'])}")
    for name, value in meter_rows(meters, worker["host_cells"]) if meters else [("steps", "none yet")]:
        click.echo(f"  {name:<12}{harmless_line(value)}")


def meter_rows(meters: dict[str, Any], host_cells: int) -> list[tuple[str, str]]:
    """Names and values of `runner.domain.status.EngineMeters`."""
    n_rows = meters["batch_prefill_tokens"] + meters["batch_decode_tokens"]
    misses = {reason: count for reason, count in meters["reuse_misses"].items() if count}
    told = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in misses.items())
    return [
        (
            "last batch",
            f"{n_rows} tokens: {meters['batch_prefill_tokens']} of prompts, "
            f"{meters['batch_decode_tokens']} of answers",
        ),
        ("last step", _step(meters["step_s"], meters["computing_s"])),
        (
            "cells",
            f"{meters['cells_used']} used, {meters['cells_retained']} retained, {meters['cells_free']} free",
        ),
        ("host memory", f"{meters['host_tokens']} tokens kept, sized for {host_cells}"),
        ("steps", f"{meters['steps']}, {_step(meters['steps_s'], meters['all_computing_s'])} in all"),
        ("tokens", f"{meters['prefill_tokens']} of prompts computed, {meters['decode_tokens']} of answers"),
        ("reused", f"{meters['reused_tokens']} tokens in {meters['reuse_hits']} prompts"),
        ("saved", f"{meters['saved_tokens']} tokens to host memory"),
        ("restored", f"{meters['restored_tokens']} tokens from host memory or saved states"),
        ("not reused", f"{sum(misses.values())} prompts" + (f": {told}" if told else "")),
        ("preemptions", str(meters["preemptions"])),
    ]


def _step(all_s: float, computing_s: float) -> str:
    """Milliseconds: a step is far below a second."""
    return f"{all_s * 1000:.1f} ms, {(all_s - computing_s) * 1000:.1f} ms of it outside the engine"
