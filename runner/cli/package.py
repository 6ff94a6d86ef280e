"""`runner ctl package`: the command reads local files and sends their content; the daemon opens none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from runner.cli.connect import (
    complete_model,
    connect_or_start,
    host_option,
    json_option,
    short_id,
    usage_error,
)
from runner.cli.output import Progress, message, print_json, progress
from runner.client import Client
from runner.errors import InvalidReference

_CHUNK_BYTES = 1 << 20
_MAGIC = b"GGUF"
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


def _read_file(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """`[FILE.gguf] NAME`."""
    if not 1 <= len(words) <= 2:
        raise click.UsageError("expected FILE.gguf and NAME, or NAME with --gguf or --from", context)
    return words


@click.command()
@click.argument("words", nargs=-1, metavar="[FILE.gguf] NAME", callback=_read_file)
@click.option("--gguf", type=_FILE, help="The weights, instead of FILE.gguf.")
@click.option(
    "--from",
    "base",
    metavar="MODEL",
    shell_complete=complete_model,
    help="A model of the store, whose layers are taken instead of a file's.",
)
@click.option("--mmproj", type=_FILE, help="Projector for images or sound, a GGUF file.")
@click.option("--license", "licenses", type=_FILE, multiple=True, help="Licence text; may be repeated.")
@click.option("--chat-template", type=_FILE, help="Jinja template instead of the one in the file.")
@click.option(
    "--context-size", type=click.IntRange(1), help="Tokens of one sequence when the model is loaded."
)
@click.option(
    "--label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    help="Annotation of the manifest; may be repeated.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["docker", "cncf"]),
    help="Docker model artifact (the default) or CNCF ModelPack.",
)
@click.option("--push", is_flag=True, help="Upload the model to the registry that NAME says, too.")
@json_option
@host_option
def package(
    words: tuple[str, ...],
    gguf: Path | None,
    base: str | None,
    mmproj: Path | None,
    licenses: tuple[Path, ...],
    chat_template: Path | None,
    context_size: int | None,
    labels: tuple[str, ...],
    kind: str | None,
    push: bool,
    as_json: bool,
    host: str | None,
) -> None:
    """Package FILE.gguf as the model NAME in the store.

    Of a file that was split (big-00001-of-00003.gguf) all parts are taken from its directory. With --from the
    new model shares everything with MODEL but what the options add or change.
    """
    name = words[-1]
    weights = _weights(words, gguf, base)
    options = [
        *(("license", path) for path in licenses),
        *((("chat_template", chat_template),) if chat_template is not None else ()),
        *((("mmproj", mmproj),) if mmproj is not None else ()),
    ]
    files = [*(("gguf", path) for path in weights), *options]
    body = _body(name, base, context_size, labels, kind)
    _check(files)
    _check_names(name, files)
    client = connect_or_start(host)
    body["layers"] = [
        {"kind": kind, "filename": path.name, "digest": _upload(client, path, is_silent=as_json)}
        for kind, path in files
    ]
    model = client.post("/control/v1/package", body)
    if as_json and not push:
        print_json(model)
    elif not as_json:
        message(f"packaged {model['name']} ({short_id(model['id'])})")
    if push:
        _push(client, name, as_json=as_json)


def _weights(words: tuple[str, ...], gguf: Path | None, base: str | None) -> list[Path]:
    """All files of the weights, none when there is a base. Raises usage errors."""
    said = {"FILE.gguf": len(words) == 2, "--gguf": gguf is not None, "--from": base is not None}
    named = [source for source, is_said in said.items() if is_said]
    if len(named) > 1:
        raise usage_error(f"{' and '.join(named)} exclude each other")
    if not named:
        raise usage_error("no weights; name FILE.gguf, or a model of the store with --from")
    if base is not None:
        return []
    path = gguf if gguf is not None else _existing(words[0])
    return _parts(path)


def _existing(word: str) -> Path:
    try:
        path = _FILE.convert(word, None, None)
    except click.BadParameter as error:
        error.param_hint = "'FILE.gguf'"
        raise
    return Path(path)


def _parts(path: Path) -> list[Path]:
    """The file, or all parts of the file that it is a part of."""
    from runner.gguf.split import PartName  # not needed by any other command

    part = PartName.parse(path.name)
    if part is None:
        return [path]
    paths = [path.with_name(name) for name in part.names()]
    missing = [found.name for found in paths if not found.exists()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise usage_error(f"{path} is one part of {part.count}; {missing[0]}{others} is not beside it")
    return paths


def _body(
    name: str, base: str | None, context_size: int | None, labels: tuple[str, ...], kind: str | None
) -> dict[str, Any]:
    """What the daemon is told beside the layers: only what was said here."""
    if kind == "cncf" and context_size is not None:
        raise usage_error("--context-size has no place in a ModelPack; leave out --format cncf")
    pairs = [label.partition("=") for label in labels]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise usage_error("--label needs KEY=VALUE")
    said = {"target": name, "base": base, "context_size": context_size, "format": kind}
    body: dict[str, Any] = {field: value for field, value in said.items() if value is not None}
    if pairs:
        body["labels"] = {key: value for key, _, value in pairs}
    return body


def _push(client: Client, name: str, *, as_json: bool) -> None:
    from runner.cli.transfer import follow, given_for

    body = {"reference": name, **given_for(name)}
    follow(client, "push", "/control/v1/push", body, name=name, is_silent=as_json, as_json=as_json)


def _check(files: list[tuple[str, Path]]) -> None:
    """What can be seen to be wrong is told before gigabytes are sent."""
    for kind, path in files:
        if not path.is_file():  # opening a pipe would wait for its writer, and its size is not known
            raise usage_error(f"{path} is not a regular file")
        if kind in ("gguf", "mmproj") and _first_bytes(path) != _MAGIC:
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
    names = set()
    for _, path in files:
        fault = file_name_fault(path.name)
        if fault is not None:
            raise usage_error(f"{path}: the model keeps the name of the file, and {fault}; rename it")
        if path.name in names:
            raise usage_error(f"{path}: the model keeps the names of the files, and has {path.name} twice")
        names.add(path.name)


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
