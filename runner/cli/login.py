"""`login`, `logout`: credentials of registries, kept where docker's tools keep them, as the user who types.

The daemon reads them there; no password passes through it, and none stands in arguments (K02).
"""

from __future__ import annotations

import os
import sys
from typing import Final

import click

from runner.cli.connect import usage_error
from runner.cli.output import message
from runner.errors import InvalidReference

_DOCKER_HUB: Final = "docker.io"
_HUGGING_FACE: Final = "huggingface.co"
_PASSWORD_BYTES_MAX: Final = 64 * 1024


@click.command()
@click.argument("registry", default=_DOCKER_HUB)
@click.option("--username", "-u", metavar="NAME", help="Asked for when it is not given.")
@click.option("--password-stdin", is_flag=True, help="Read the password or token from stdin.")
def login(registry: str, username: str | None, password_stdin: bool) -> None:
    """Log in to REGISTRY, by default docker.io.

    The login is tried, and then kept as `docker login` keeps it: by its credential helper, or in its
    config.json. For Hugging Face, set HF_TOKEN instead.
    """
    registry = _registry(registry)
    if registry == _HUGGING_FACE:
        raise usage_error(f"{_HUGGING_FACE} has no logins; set HF_TOKEN to a token of yours")
    username = username or _asked("Username: ", is_hidden=False)
    password = _piped() if password_stdin else _asked("Password or token: ", is_hidden=True)
    if not username or not password:
        raise usage_error("a login needs a name and a password")
    _check(registry, username, password)
    from runner.domain.transfer import RemoteCredentials
    from runner.network import credential_source

    where = credential_source(os.environ).store(
        registry, RemoteCredentials(username=username, password=password)
    )
    message(f"logged in to {registry} as {username}; kept in {where}")


@click.command()
@click.argument("registry", default=_DOCKER_HUB)
def logout(registry: str) -> None:
    """Forget the login of REGISTRY, by default docker.io."""
    registry = _registry(registry)
    from runner.network import credential_source

    if credential_source(os.environ).erase(registry):
        message(f"logged out of {registry}")
    else:
        message(f"there was no login of {registry}")


def _registry(text: str) -> str:
    """As it stands in names of models; a scheme or path around it is left out."""
    from runner.oci.reference import Reference

    name = text.removeprefix("https://").removeprefix("http://").partition("/")[0]
    try:
        reference = Reference.parse(f"{name}/any/model")
    except InvalidReference as error:
        raise usage_error(f"{text!r} is not the name of a registry") from error
    if reference.repository != "any/model":  # a name without a dot or port is no host here
        raise usage_error(f"{text!r} is not the name of a registry; write registry.example or localhost:5000")
    return reference.registry


def _check(registry: str, username: str, password: str) -> None:
    """Raises RegistryUnauthorized, and whatever else is in the way to the registry."""
    from runner.config import resolve
    from runner.domain.transfer import RemoteCredentials
    from runner.network import network_rules, registry_client
    from runner.registry.transport import Door

    door = Door(network_rules(resolve({}, os.environ).settings, os.environ))
    try:
        registry_client(door, os.environ).check_login(
            registry, RemoteCredentials(username=username, password=password)
        )
    finally:
        door.close()


def _asked(question: str, *, is_hidden: bool) -> str:
    """From the terminal; a hidden answer is not shown while it is typed."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise usage_error("no terminal to ask at: give --username and --password-stdin")
    text: str = click.prompt(
        question, prompt_suffix="", hide_input=is_hidden, default="", show_default=False, err=True
    )
    return text


def _piped() -> str:
    """Without the newline that most programs end it with."""
    if sys.stdin is None:
        raise usage_error("there is no stdin to read the password from")
    content = sys.stdin.buffer.read(_PASSWORD_BYTES_MAX)
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise usage_error("the password is not UTF-8 text") from error
