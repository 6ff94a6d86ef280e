"""`ls`, `inspect`, `tag`, `untag`, `rm`."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import click

from runner.cli.connect import connect, host_option, json_option
from runner.cli.output import harmless, message, print_json, print_table
from runner.client import ApiError, DaemonUnreachable, model_path
from runner.errors import RunnerError
from runner.units import format_age, format_bytes


def complete_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the store for the shell; silence when no daemon answers."""
    try:
        models = connect(None).get("/control/v1/models")
    except RunnerError:
        return []
    return [model["name"] for model in models if model["name"].startswith(incomplete)]


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
            click.echo(_short(model["id"]))
    else:
        print_table(
            ("NAME", "PARAMETERS", "QUANTIZATION", "ARCHITECTURE", "CONTEXT", "ID", "CREATED", "SIZE"),
            [_row(model, name) for model in models for name in _names(model)],
        )


def _names(model: dict[str, Any]) -> list[str]:
    return [_familiar(tag) for tag in model["tags"]] or ["<none>"]


def _familiar(tag: str) -> str:
    return tag.removeprefix("docker.io/").removesuffix(":latest")


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _row(model: dict[str, Any], name: str) -> tuple[str, ...]:
    context_size = model["context_size"] or model["trained_context_size"]
    return (
        name,
        model["parameters"],
        model["quantization"],
        model["architecture"],
        str(context_size or ""),
        _short(model["id"]),
        format_age(time.time() - model["created_s"]) if model["created_s"] else "",
        format_bytes(model["size_bytes"]),
    )


@click.command()
@click.argument("model", shell_complete=complete_model)
@json_option
@host_option
def inspect(model: str, as_json: bool, host: str | None) -> None:
    """Show one model: names, sizes, layers, metadata."""
    report = connect(host).get(f"/control/v1/models/{model_path(model)}")
    if as_json:
        print_json(report)
        return
    summary = report["model"]
    rows = [
        ("Names", ", ".join(_names(summary))),
        ("Id", summary["id"]),
        ("Format", summary["format"]),
        ("Architecture", summary["architecture"]),
        ("Parameters", summary["parameters"]),
        ("Quantization", summary["quantization"]),
        ("Size", format_bytes(summary["size_bytes"])),
        ("Context", _context(summary)),
        ("Licenses", ", ".join(report["licenses"]) or "none"),
    ]
    _print_section(None, rows)
    _print_section(
        "Layers",
        [
            (
                layer["digest"],
                f"{format_bytes(layer['size_bytes'])}  {layer['media_type']}"
                + (f"  {layer['filename']}" if layer["filename"] else ""),
            )
            for layer in report["layers"]
        ],
    )
    _print_section("Metadata", [(key, _one_line(value)) for key, value in sorted(report["metadata"].items())])


def _context(summary: dict[str, Any]) -> str:
    packaged, trained = summary["context_size"], summary["trained_context_size"]
    parts = [f"{packaged} packaged" if packaged else "", f"{trained} trained" if trained else ""]
    return ", ".join(part for part in parts if part) or "unknown"


def _one_line(text: str, limit: int = 100) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _print_section(title: str | None, rows: list[tuple[str, str]]) -> None:
    if not rows:
        return
    if title is not None:
        click.echo(f"\n{title}:")
    indent = "" if title is None else "  "
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        click.echo(f"{indent}{harmless(label):<{width}}  {harmless(value, keep_newlines=False)}")


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
        message(f"{target} now names {_short(model['id'])}")


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
        message(f"{name} no longer names {_short(model['id'])}")


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
    failures: list[RunnerError] = []
    for model in models:
        try:
            removals += client.delete(
                f"/control/v1/models/{model_path(model)}?force={quote(str(force).lower())}"
            )
        except DaemonUnreachable:
            raise
        except ApiError as error:
            failures.append(error)
            if len(models) > 1:
                message(f"error: {error}")
    if as_json:
        print_json(removals)
    else:
        for removal in removals:
            click.echo(
                f"untagged {_familiar(removal['untagged'])}"
                if removal["untagged"]
                else f"deleted {removal['deleted']}"
            )
    if failures:
        if len(models) == 1:
            raise failures[0]
        raise SystemExit(1)
