"""A model that is wanted and not in the store is pulled first, where a person or a script asked for it by
name. Requests over HTTP never pull."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from runner.cli.failures import is_model_missing
from runner.cli.output import message
from runner.client import ApiError, Client

T = TypeVar("T")

no_pull_option = click.option("--no-pull", is_flag=True, help="Fail when MODEL is not in the store.")


def with_model(
    client: Client, model: str, ask: Callable[[str], T], *, may_pull: bool, is_silent: bool = False
) -> T:
    """What `ask` gives for this name; when the model is missing, it is pulled, and asked for once more.

    An id says nothing about where a model is: only names are pulled. A name with a digest may be that of an
    index, which the store does not know; what it led to has an id of its own.
    """
    try:
        return ask(model)
    except ApiError as error:
        if not may_pull or not is_model_missing(error) or not _is_name(model):
            raise
    from runner.cli.transfer import pull_body, pulled

    message(f"{model} is not in the store; pulling it")
    result = pulled(client, pull_body(model), is_silent=is_silent, as_json=False)
    return ask(result["model_id"] if "@" in model else model)


def _is_name(model: str) -> bool:
    from runner.errors import InvalidReference
    from runner.oci.reference import ModelName

    try:
        meant = ModelName.parse(model)
    except InvalidReference:
        return False
    return meant.reference is not None and meant.short_id is None
