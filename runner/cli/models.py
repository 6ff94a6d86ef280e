"""`ls`, `inspect`, `tag`, `untag`, `rm`."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import click

from runner.cli.connect import (
    complete_model,
    connect,
    connect_or_start,
    familiar,
    host_option,
    json_option,
    short_id,
)
from runner.cli.output import harmless_line, message, print_json, print_table
from runner.client import ApiError, model_path
from runner.units import format_age, format_bytes


@click.command()
@click.option("--quiet", "-q", is_flag=True, help="Print ids only.")
@json_option
@host_option
def ls(quiet: bool, as_json: bool, host: str | None) -> None:
    """List the models of the store, one row per name."""
    models = connect(host).get("/control/v1/models")
    if as_json:
        print_json(models)
    elif quiet:
        for model in models:
            click.echo(short_id(model["id"]))
    else:
        print_table(
            _LS_HEADER,
            [_row(model, name) for model in models for name in _names(model)],
        )


_LS_HEADER = (
    "NAME",
    "PARAMETERS",
    "QUANTIZATION",
    "ARCHITECTURE",
    "CONTEXT",
    "ID",
    "CREATED",
    "SIZE",
    "STATE",
)


def _names(model: dict[str, Any]) -> list[str]:
    return [familiar(tag) for tag in model["tags"]] or ["<none>"]


def _row(model: dict[str, Any], name: str) -> tuple[str, ...]:
    context_size = model["context_size"] or model["trained_context_size"]
    return (
        name,
        model["parameters"],
        model["quantization"],
        model["architecture"],
        str(context_size or ""),
        short_id(model["id"]),
        format_age(time.time() - model["created_s"]) if model["created_s"] else "",
        format_bytes(model["size_bytes"]),
        "quarantined" if model["quarantine"] else "",
    )


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option("--remote", "-r", is_flag=True, help="Ask the registry that MODEL names, and fetch nothing.")
@json_option
@host_option
def inspect(model: str, remote: bool, as_json: bool, host: str | None) -> None:
    """Show one model: names, sizes, layers, metadata."""
    report = _remote(host, model) if remote else connect(host).get(f"/control/v1/models/{model_path(model)}")
    if as_json:
        print_json(report)
        return
    summary = report["model"]
    rows = [
        ("Name", summary["name"]) if remote else ("Names", ", ".join(_names(summary))),
        ("Id", summary["id"] or "known when it has been pulled"),
        ("Format", summary["format"]),
        ("Architecture", summary["architecture"]),
        ("Parameters", summary["parameters"]),
        ("Quantization", summary["quantization"]),
        ("Size", format_bytes(summary["size_bytes"])),
        ("Context", _context(summary)),
    ]
    if not remote:
        rows.append(("Licenses", ", ".join(_title(text) for text in report["licenses"]) or "none"))
    if summary["quarantine"]:
        rows.append(("Quarantine", summary["quarantine"]))
    _print_section(None, rows)
    _print_section(
        "Layers",
        [
            (
                layer["digest"] or "(hashed when it is fetched)",
                f"{format_bytes(layer['size_bytes'])}  {layer['media_type']}"
                + (f"  {layer['filename']}" if layer["filename"] else ""),
            )
            for layer in report["layers"]
        ],
    )
    _print_section("Labels", sorted((key, _one_line(text)) for key, text in report["labels"].items()))
    _print_section("Metadata", [(key, _one_line(value)) for key, value in sorted(report["metadata"].items())])


def _remote(host: str | None, model: str) -> Any:
    from runner.cli.transfer import pull_body, without_secrets

    body = pull_body(model)
    client = connect_or_start(host)
    return client.post("/control/v1/remote", without_secrets(client, body))


def _context(summary: dict[str, Any]) -> str:
    packaged, trained = summary["context_size"], summary["trained_context_size"]
    parts = [f"{packaged} packaged" if packaged else "", f"{trained} trained" if trained else ""]
    return ", ".join(part for part in parts if part) or "unknown"


def _title(license_text: str) -> str:
    """Its first line that says something; `--json` has the whole."""
    return next((_one_line(line, 60) for line in license_text.splitlines() if line.strip()), "(empty)")


def _one_line(text: str, limit: int = 100) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _print_section(title: str | None, rows: list[tuple[str, str]]) -> None:
    if not rows:
        return
    if title is not None:
        click.echo(f"\n{title}:")
    indent = "" if title is None else "  "
    cells = [(harmless_line(label), harmless_line(value)) for label, value in rows]
    width = max(len(label) for label, _ in cells)
    for label, value in cells:
        click.echo(f"{indent}{label:<{width}}  {value}")


@click.command()
@click.argument("source", shell_complete=complete_model)
@click.argument("target")
@json_option
@host_option
def tag(source: str, target: str, as_json: bool, host: str | None) -> None:
    """Give the model SOURCE the further name TARGET; a TARGET in use moves."""
    model = connect(host).post("/control/v1/tag", {"source": source, "target": target})
    if as_json:
        print_json(model)
    else:
        message(f"{target} now names {short_id(model['id'])}")


@click.command()
@click.argument("name", shell_complete=complete_model)
@json_option
@host_option
def untag(name: str, as_json: bool, host: str | None) -> None:
    """Remove a NAME and keep the model, which stays reachable by its id."""
    model = connect(host).post("/control/v1/untag", {"target": name})
    if as_json:
        print_json(model)
    else:
        message(f"{name} no longer names {short_id(model['id'])}")


@click.command()
@click.argument("models", nargs=-1, required=True, shell_complete=complete_model)
@click.option(
    "--force", "-f", is_flag=True, help="Also remove a model that has several names, when given by id."
)
@json_option
@host_option
def rm(models: tuple[str, ...], force: bool, as_json: bool, host: str | None) -> None:
    """Remove names; a model goes with its last one. Goes on after a failure, and then exits with 1."""
    client = connect(host)
    removals: list[dict[str, Any]] = []
    failures: list[ApiError] = []
    for model in models:
        try:
            removals += client.delete(
                f"/control/v1/models/{model_path(model)}?force={quote(str(force).lower())}"
            )
        except ApiError as error:
            failures.append(error)
            if len(models) > 1:
                message(f"error: {error}")
    if as_json:
        print_json(removals)
    else:
        for removal in removals:
            did = f"untagged {familiar(removal['untagged'])}" if removal["untagged"] else None
            click.echo(harmless_line(did or f"deleted {removal['deleted']}"))
    if failures:
        if len(models) == 1:
            raise failures[0]
        raise SystemExit(1)
