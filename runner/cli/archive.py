"""`save`, `load`: a model between the store and a file. The daemon opens no file; its content travels."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import click

from runner.cli.connect import (
    complete_model,
    connect,
    connect_or_start,
    host_option,
    json_option,
    short_id,
    usage_error,
)
from runner.cli.output import Progress, message, print_json, progress
from runner.client import Client
from runner.errors import InvalidReference
from runner.units import format_bytes

_CHUNK_BYTES = 1 << 20
_STANDARD = "-"


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, allow_dash=True), required=True,
    help="File to write, which appears when it is complete; - for standard output.",
)  # fmt: skip
@host_option
def save(model: str, output: str, host: str | None) -> None:
    """Write MODEL into one file, an OCI archive.

    `runner ctl load` and Docker Model Runner read it, and tools for OCI images (`skopeo copy
    oci-archive:FILE …`). The same model gives the same bytes.
    """
    client = connect(host)
    if output == _STANDARD:
        if sys.stdout.isatty():
            raise usage_error("an archive is not written to a terminal; name a file with --output")
        _copy(client, model, sys.stdout.buffer, is_silent=True)
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    size_bytes = _write(client, model, path)
    message(f"saved {model} as {path} ({format_bytes(size_bytes)})")


def _write(client: Client, model: str, path: Path) -> int:
    """Whole or not at all: into a file beside it, which then takes its name. A link stays one; what is no
    regular file, as a pipe or device, takes the bytes as they come, and is not replaced."""
    target = path.resolve()
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                return _copy(client, model, file, is_silent=False)
        with partial.open("xb") as file:
            size_bytes = _copy(client, model, file, is_silent=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return size_bytes


def _copy(client: Client, model: str, file: BinaryIO, *, is_silent: bool) -> int:
    report = client.get(f"/control/v1/models/{quote(model, safe='/:@', errors='surrogateescape')}")
    total_bytes = report["model"]["size_bytes"]
    path = f"/control/v1/save?model={quote(model, safe='', errors='surrogateescape')}"
    written_bytes = 0
    with progress(model, total_bytes, is_silent=is_silent) as shown, closing(client.download(path)) as chunks:
        for chunk in chunks:
            file.write(chunk)
            shown.advance(min(len(chunk), max(0, total_bytes - written_bytes)))
            written_bytes += len(chunk)
    return written_bytes


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=str))
@click.option("--name", help="What the model is called from now on, instead of what the file says.")
@json_option
@host_option
def load(file: str, name: str | None, as_json: bool, host: str | None) -> None:
    """Store the models of FILE (- for standard input): an OCI archive, or what Docker Model Runner exports.

    Everything is verified; when something is wrong with the file nothing of it is stored.
    """
    path = "/control/v1/load"
    if name is not None:
        _check_name(name)
        path += f"?name={quote(name, safe='')}"
    client = connect_or_start(host)
    if file == _STANDARD:
        models = client.upload(path, _chunks(sys.stdin.buffer, "standard input", None), None)
    else:
        models = _send(client, path, Path(file), is_silent=as_json)
    if as_json:
        print_json(models)
        return
    for model in models:
        message(f"loaded {model['name']} ({short_id(model['id'])}, {format_bytes(model['size_bytes'])})")


def _check_name(name: str) -> None:
    from runner.oci.reference import Reference  # not needed by any other command here

    try:
        reference = Reference.parse(name)
    except InvalidReference as error:
        raise usage_error(str(error)) from error
    if reference.digest is not None:
        raise usage_error("--name has a digest; that is what the file says")


def _send(client: Client, path: str, file: Path, *, is_silent: bool) -> Any:
    if not file.is_file():  # opening a pipe would wait for its writer; standard input may be one
        raise usage_error(f"{file} is not a regular file; - reads standard input")
    try:
        opened = file.open("rb")
    except OSError as error:
        raise _unreadable(str(file), error) from error
    with opened:
        size_bytes = os.fstat(opened.fileno()).st_size
        with progress(file.name, size_bytes, is_silent=is_silent or size_bytes < _CHUNK_BYTES) as shown:
            try:
                return client.upload(path, _chunks(opened, str(file), shown), size_bytes)
            except ValueError as error:
                raise click.ClickException(f"{file}: {error}") from error


def _chunks(file: BinaryIO, named: str, shown: Progress | None) -> Iterator[bytes]:
    while True:
        try:
            chunk = file.read(_CHUNK_BYTES)
        except OSError as error:
            raise _unreadable(named, error) from error
        if not chunk:
            return
        yield chunk
        if shown is not None:
            shown.advance(len(chunk))


def _unreadable(named: str, error: OSError) -> click.ClickException:
    return click.ClickException(f"{named} cannot be read: {error.strerror or error}")
