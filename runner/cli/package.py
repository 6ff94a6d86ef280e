"""`runner ctl package`: the command reads local files and sends their content; the daemon opens none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from runner.cli.connect import connect_or_start, host_option, json_option
from runner.cli.output import Progress, message, print_json, progress
from runner.client import Client

_CHUNK_BYTES = 1 << 20
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command()
@click.argument("gguf", metavar="FILE.gguf", type=_FILE)
@click.argument("name")
@click.option("--license", "licenses", type=_FILE, multiple=True, help="Licence text; may be repeated.")
@click.option("--chat-template", type=_FILE, help="Jinja template instead of the one in the file.")
@click.option(
    "--context-size", type=click.IntRange(1), help="Tokens of one sequence when the model is loaded."
)
@json_option
@host_option
def package(
    gguf: Path,
    name: str,
    licenses: tuple[Path, ...],
    chat_template: Path | None,
    context_size: int | None,
    as_json: bool,
    host: str | None,
) -> None:
    """Package FILE.gguf as the model NAME in the store."""
    client = connect_or_start(host)
    files = [("gguf", gguf), *(("license", path) for path in licenses)]
    if chat_template is not None:
        files.append(("chat_template", chat_template))
    layers = [
        {"kind": kind, "filename": path.name, "digest": _upload(client, path, as_json)}
        for kind, path in files
    ]
    body: dict[str, Any] = {"target": name, "layers": layers}
    if context_size is not None:
        body["context_size"] = context_size
    model = client.post("/control/v1/package", body)
    if as_json:
        print_json(model)
    else:
        message(f"packaged {model['name']} ({model['id'].removeprefix('sha256:')[:12]})")


def _upload(client: Client, path: Path, is_silent: bool) -> str:
    """The digest under which the daemon now has the content."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            with progress(path.name, size_bytes, is_silent=is_silent) as shown:
                blob = client.upload("/control/v1/blobs", _chunks(file, shown), size_bytes, {})
    except OSError as error:
        raise click.FileError(str(path), error.strerror or str(error)) from error
    digest: str = blob["digest"]
    return digest


def _chunks(file: BinaryIO, shown: Progress) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
        shown.advance(len(chunk))
