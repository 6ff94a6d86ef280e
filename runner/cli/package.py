"""`runner ctl package`: the command reads local files and sends their content; the daemon opens none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from runner.cli.connect import connect_or_start, host_option, json_option, short_id, usage_error
from runner.cli.output import Progress, message, print_json, progress
from runner.client import Client
from runner.errors import InvalidReference

_CHUNK_BYTES = 1 << 20
_MAGIC = b"GGUF"
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
    files = [("gguf", gguf), *(("license", path) for path in licenses)]
    if chat_template is not None:
        files.append(("chat_template", chat_template))
    _check(files)
    _check_names(name, files)
    client = connect_or_start(host)
    layers = [
        {"kind": kind, "filename": path.name, "digest": _upload(client, path, is_silent=as_json)}
        for kind, path in files
    ]
    body: dict[str, Any] = {"target": name, "layers": layers}
    if context_size is not None:
        body["context_size"] = context_size
    model = client.post("/control/v1/package", body)
    if as_json:
        print_json(model)
    else:
        message(f"packaged {model['name']} ({short_id(model['id'])})")


def _check(files: list[tuple[str, Path]]) -> None:
    """What can be seen to be wrong is told before gigabytes are sent."""
    for kind, path in files:
        if not path.is_file():  # opening a pipe would wait for its writer, and its size is not known
            raise usage_error(f"{path} is not a regular file")
        if kind == "gguf" and _first_bytes(path) != _MAGIC:
            raise usage_error(f"{path} is not a GGUF file")


def _check_names(name: str, files: list[tuple[str, Path]]) -> None:
    from runner.oci.filename import file_name_fault  # not needed by any other command
    from runner.oci.reference import Reference

    try:
        target = Reference.parse(name)
    except InvalidReference as error:
        raise usage_error(str(error)) from error
    if target.digest is not None:
        raise usage_error("NAME has a digest; that is what packaging yields")
    for _, path in files:
        fault = file_name_fault(path.name)
        if fault is not None:
            raise usage_error(f"{path}: the model keeps the name of the file, and {fault}; rename it")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC))
    except OSError as error:
        raise _unreadable(path, error) from error


def _upload(client: Client, path: Path, *, is_silent: bool) -> str:
    """The digest under which the daemon now has the content."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        size_bytes = os.fstat(file.fileno()).st_size
        with progress(path.name, size_bytes, is_silent=is_silent or size_bytes < _CHUNK_BYTES) as shown:
            try:
                blob = client.upload("/control/v1/blobs", _chunks(file, path, shown), size_bytes)
            except ValueError as error:
                raise click.ClickException(f"{path}: {error}") from error
    digest: str = blob["digest"]
    return digest


def _chunks(file: BinaryIO, path: Path, shown: Progress) -> Iterator[bytes]:
    while chunk := _read(file, path):
        yield chunk
        shown.advance(len(chunk))


def _read(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.read(_CHUNK_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> click.ClickException:
    return click.ClickException(f"{path} cannot be read: {error.strerror or error}")
