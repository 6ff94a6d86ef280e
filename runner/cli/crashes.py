"""`crashes`, `unquarantine`: workers that died, and models that are not loaded any more because of it."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import click

from runner.cli.connect import complete_model, connect, host_option, json_option
from runner.cli.output import harmless, harmless_line, message, print_json, print_table
from runner.units import format_age, format_duration


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--verbose", "-v", is_flag=True, help="Also show requests, versions and last words.")
@json_option
@host_option
def crashes(model: str | None, verbose: bool, as_json: bool, host: str | None) -> None:
    """List the latest deaths of workers, of all models or of MODEL; the latest comes first."""
    query = f"?model={quote(model, safe='')}" if model is not None else ""
    reports = connect(host).get(f"/control/v1/crashes{query}")
    if as_json:
        print_json(reports)
    elif verbose:
        for report in reports:
            _print_whole(report)
    else:
        print_table(
            ("WHEN", "MODEL", "WHILE", "AFTER", "REQUESTS", "CAUSE"), [_row(report) for report in reports]
        )


def _row(report: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{format_age(time.time() - report['at_s'])}",
        report["model"],
        report["phase"],
        format_duration(report["lived_s"]),
        str(len(report["request_ids"])),
        report["cause"],
    )


def _print_whole(report: dict[str, Any]) -> None:
    lines = [
        ("Model", f"{report['model']} ({report['model_id']})"),
        ("When", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report["at_s"]))),
        ("Cause", f"{report['cause']} ({report['kind']})"),
        ("While", f"{report['phase']}, after {format_duration(report['lived_s'])}"),
        ("Engine", report["engine_version"] or "unknown"),
        ("Pid", str(report["pid"] or "none")),
        ("Requests", " ".join(report["request_ids"]) or "none"),
    ]
    for label, value in lines:
        click.echo(f"{label:<10}{harmless_line(value)}")
    for line in report["output_tail"].splitlines():
        click.echo(f"  | {harmless(line)}")
    click.echo()


@click.command()
@click.argument("model", shell_complete=complete_model)
@json_option
@host_option
def unquarantine(model: str, as_json: bool, host: str | None) -> None:
    """Let MODEL be loaded again after its loads crashed the engine."""
    report = connect(host).post("/control/v1/unquarantine", {"model": model})
    if as_json:
        print_json(report)
    elif report["was_quarantined"]:
        message(f"{report['model']} may be loaded again")
    else:
        message(f"{report['model']} was not in quarantine")
