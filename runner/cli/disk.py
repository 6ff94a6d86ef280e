"""`df`, `gc`, `prune`, `verify`, `repair`: the store's disk, and whether what lies there is sound."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import click

from runner.cli.connect import (
    complete_model,
    connect,
    familiar,
    host_option,
    json_option,
    short_id,
    usage_error,
)
from runner.cli.output import harmless_line, message, print_json, print_table, progress
from runner.cli.transfer import follow, given_for
from runner.client import Client
from runner.units import format_bytes

_MEANINGS = {
    "missing": "it is not there",
    "wrong_size": "it has another size",
    "wrong_content": "it has other bytes",
    "foreign": "it is not a plain file of ours",
    "unreadable": "the disk cannot read it",
}


@click.command()
@json_option
@host_option
def df(as_json: bool, host: str | None) -> None:
    """Show what models take of the disk, and what is free."""
    report = connect(host).get("/control/v1/df")
    if as_json:
        print_json(report)
        return
    print_table(
        ("NAME", "ID", "SIZE", "OWN"),
        [
            (
                ", ".join(familiar(tag) for tag in model["tags"]) or "<none>",
                short_id(model["id"]),
                format_bytes(model["size_bytes"]),
                format_bytes(model["own_bytes"]),
            )
            for model in report["models"]
        ],
    )
    click.echo()
    rows = (
        ("Shared by models", "shared_bytes"),
        ("Unfinished downloads", "partial_bytes"),
        ("Used by no model", "leftover_bytes"),
        ("All of the store", "total_bytes"),
        ("Saved caches", "cache_bytes"),
        ("Free", "free_bytes"),
        ("Kept free", "reserve_bytes"),
    )
    for label, field in rows:
        click.echo(f"{label:<20}  {format_bytes(report[field])}")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@json_option
@host_option
def gc(dry_run: bool, as_json: bool, host: str | None) -> None:
    """Remove content that no model uses, and unfinished downloads, when they are older than a week."""
    _collect(host, {"dry_run": dry_run}, as_json=as_json)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@host_option
def prune(dry_run: bool, yes: bool, as_json: bool, host: str | None) -> None:
    """Remove models without a name, and all content that no model uses, however young.

    What is loaded, or on its way, stays.
    """
    if not dry_run and not yes and not _is_agreed():
        message("nothing was removed")
        return
    _collect(host, {"prune": True, "dry_run": dry_run}, as_json=as_json)


def _is_agreed() -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise usage_error("no terminal to ask at: give --yes, or --dry-run to see what would go")
    return click.confirm("Remove models without a name, and all that no model uses?", err=True)


def _collect(host: str | None, body: Mapping[str, bool], *, as_json: bool) -> None:
    report = connect(host).post("/control/v1/gc", body)
    if as_json:
        print_json(report)
        return
    would = "would remove" if report["is_dry_run"] else "removed"
    for kind, field in (
        ("model", "removed_models"),
        ("content", "removed"),
        ("download", "removed_downloads"),
    ):
        for digest in report[field]:
            click.echo(harmless_line(f"{would} {kind} {digest}"))
    freed = "would be freed" if report["is_dry_run"] else "freed"
    message(f"{format_bytes(report['freed_bytes'])} {freed}")
    if report["kept_leftovers"]:
        why = "they are in use" if body.get("prune") else "they are in use, or younger than a week"
        message(f"{format_bytes(report['kept_bytes'])} that no model uses stay, since {why}")


@click.command()
@click.argument("models", nargs=-1, shell_complete=complete_model)
@json_option
@host_option
def verify(models: tuple[str, ...], as_json: bool, host: str | None) -> None:
    """Read all content of MODELS (by default of every one) and compare it with its digests.

    Exits with 1 when something is wrong; `runner ctl repair` fetches it again.
    """
    body = {"models": list(models)} if models else {}
    report = _checked(connect(host), body, is_silent=as_json)
    findings = report["findings"]
    if as_json:
        print_json({name: value for name, value in report.items() if name != "type"})
    else:
        for finding in findings:
            click.echo(harmless_line(_found(finding)))
        size = format_bytes(report["size_bytes"])
        message(f"checked {_count(report['models'], 'model')}, {size}: {_verdict(findings)}")
    if findings:
        raise SystemExit(1)


def _checked(client: Client, body: Mapping[str, Any], *, is_silent: bool) -> dict[str, Any]:
    """The report, while a bar moves on a terminal."""
    with closing(client.lines("/control/v1/verify", body)) as lines:
        line = next(lines)
        if line["type"] == "progress":
            with progress("verifying", line["total_bytes"], is_silent=is_silent) as shown:
                done_bytes = 0
                while line["type"] == "progress":
                    shown.advance(line["done_bytes"] - done_bytes)
                    done_bytes = line["done_bytes"]
                    line = next(lines)
                if not line["findings"]:
                    shown.advance(line["size_bytes"] - done_bytes)
        report: dict[str, Any] = line
    return report


def _found(finding: Mapping[str, Any]) -> str:
    of = f" of {', '.join(finding['models'])}" if finding["models"] else ""
    what = _MEANINGS.get(finding["kind"], finding["message"])
    return f"{finding['digest']}{of}: {what}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _verdict(findings: list[dict[str, Any]]) -> str:
    if not findings:
        return "all is sound"
    damaged = sorted({name for finding in findings for name in finding["models"]})
    return f"{_count(len(findings), 'part')} damaged" + (
        f"; `runner ctl repair {damaged[0]}` mends {damaged[0]}" if damaged else ""
    )


@click.command()
@click.argument("model", shell_complete=complete_model)
@json_option
@host_option
def repair(model: str, as_json: bool, host: str | None) -> None:
    """Check MODEL, and fetch what is damaged of it from where it came."""
    body: dict[str, Any] = {"model": model, **given_for(model)}
    follow(
        connect(host), "repair", "/control/v1/repair", body, name=model, is_silent=as_json, as_json=as_json
    )
