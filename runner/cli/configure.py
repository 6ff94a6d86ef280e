"""`runner ctl configure`: settings of one model, and where each of them comes from.

Options are made of `runner.domain.settings.SETTINGS`, and their values are checked here by the same functions
as in the daemon, so that faults are told with the names of options.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from runner.cli.connect import complete_model, connect_or_start, host_option, json_option, usage_error
from runner.cli.output import message, print_json, print_table
from runner.domain.sampling import INTEGERS, RANGES
from runner.domain.settings import CHAT_TEMPLATE_BYTES_MAX, SETTINGS, Setting, read_settings
from runner.errors import InvalidParameter
from runner.units import format_duration

_PATH = "/control/v1/configure"
_ALL = "all"
_BOTH_TYPES = ("key_type", "value_type")
_TEMPLATE_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)

_TYPES: dict[str, Any] = {
    **dict.fromkeys(("context_size", "max_sequences", "threads"), click.INT),
    **{name: click.INT if name in INTEGERS else click.FLOAT for name in RANGES},
    **dict.fromkeys(("key_type", "value_type"), click.Choice(("f16", "q8_0", "q4_0"))),
    "flash_attention": click.Choice(("auto", "on", "off")),
    "chat_template": _TEMPLATE_FILE,
    "keep_alive": click.STRING,
}
_METAVARS = {"chat_template": "FILE", "keep_alive": "DURATION"}
_NAMES_TO_UNSET: dict[str, tuple[str, ...]] = {
    **{setting.name.replace("_", "-"): (setting.name,) for setting in SETTINGS},
    "parallel": ("max_sequences",),
    "kv-type": _BOTH_TYPES,
    _ALL: tuple(setting.name for setting in SETTINGS),
}


def _flags(setting: Setting) -> tuple[str, ...]:
    flag = "--" + setting.name.replace("_", "-")
    if setting.name == "pin":
        return (f"{flag}/--no-{setting.name}",)
    return ("--parallel", flag) if setting.name == "max_sequences" else (flag,)


def _with_settings(command: Any) -> Any:
    """One option per setting, None when absent."""
    for setting in reversed(SETTINGS):
        command = click.option(
            *_flags(setting),
            setting.name,
            default=None,
            type=_TYPES.get(setting.name),
            metavar=_METAVARS.get(setting.name),
            help=_sentence(setting.help),
        )(command)
    return command


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


@click.command()
@click.argument("model", shell_complete=complete_model)
@_with_settings
@click.option(
    "--kv-type",
    type=_TYPES["key_type"],
    help="Type of keys and values in the KV cache: --key-type and --value-type in one.",
)
@click.option(
    "--unset",
    multiple=True,
    metavar="NAME",
    type=click.Choice(tuple(_NAMES_TO_UNSET)),
    help="Forget what was configured; may be repeated. NAME is an option without its dashes, or all.",
)
@click.option("--show", is_flag=True, help="Print every setting and where it comes from; so does no option.")
@json_option
@host_option
def configure(
    model: str,
    kv_type: str | None,
    unset: tuple[str, ...],
    show: bool,
    as_json: bool,
    host: str | None,
    **options: Any,
) -> None:
    """Configure MODEL by its digest, for all its names; what is not named here stays as it is.

    What a model is loaded with holds from its next load on, the rest at once. A request that says something
    else itself is heard first; then comes what is configured, packaged, set for the daemon, built in.
    """
    values = {name: value for name, value in options.items() if value is not None}
    if kv_type is not None:
        values = {**dict.fromkeys(_BOTH_TYPES, kv_type), **values}
    if "chat_template" in values:
        values["chat_template"] = _template(values["chat_template"])
    names = sorted({name for one in unset for name in _NAMES_TO_UNSET[one]} - values.keys())
    _check(values)
    client = connect_or_start(host)
    if values or names:
        answer = client.post(_PATH, {"model": model, "set": values, "unset": names})
        if not as_json:
            _tell(answer, values, names)
    else:
        answer, show = client.get(f"{_PATH}?model={quote(model, safe='')}"), True
    if as_json:
        print_json(answer)
    elif show:
        print_table(("SETTING", "VALUE", "FROM"), [_row(one) for one in answer["settings"]])


def _template(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(CHAT_TEMPLATE_BYTES_MAX + 1)
        return content.decode()
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise usage_error(f"{path} is not UTF-8 text") from error


def _check(values: dict[str, Any]) -> None:
    """All faults at once, with the names of the options."""
    try:
        read_settings(values)
    except InvalidParameter as error:
        told = (f"--{fault.path.replace('_', '-')} {fault.message}" for fault in error.faults)
        raise usage_error("; ".join(told)) from None


def _tell(answer: dict[str, Any], changed: Iterable[str], unset: Iterable[str]) -> None:
    shown = {one["name"]: one for one in answer["settings"]}
    for name in (*changed, *unset):
        _, value, origin = _row(shown[name])
        message(f"{name} is {value or 'not set'} ({origin})")
    if answer["is_outdated"]:
        message(
            f"{answer['model']} is in use and keeps what it was loaded with until it is unloaded: "
            f"`runner ctl unload {answer['model']}`"
        )
    elif answer["was_unloaded"]:
        message(f"{answer['model']} was unloaded; its next use loads it with this")


def _row(setting: dict[str, Any]) -> tuple[str, str, str]:
    return setting["name"], _shown(setting["name"], setting["value"]), setting["origin"]


def _shown(name: str, value: Any) -> str:
    match name, value:
        case _, None:
            return ""
        case _, bool():
            return "yes" if value else "no"
        case "keep_alive", _:
            return format_duration(value) if value >= 0 else "for ever"
        case "chat_template", str():
            return f"a text of {len(value)} characters"
    return str(value)
