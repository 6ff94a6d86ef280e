"""Settings from flags, environment and file, resolved once, with every fault reported together.

Order: flag, then `RUNNER_…` in the environment, then `config.toml` in the user's config directory, then the
default. An empty variable counts as absent. Below `runner/daemon.py` nobody knows settings: constructors take
values. Imports places, units and errors.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from runner.errors import StartRefused
from runner.places import config_file, default_socket, default_store
from runner.units import parse_bytes, parse_duration

CONFIG_VERSION = 1
DEFAULT_PORT = 12434
SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux, less its final zero
LOG_LEVELS = ("debug", "info", "warning", "error")
ENGINES = ("llama", "scripted")


class Origin(enum.Enum):
    """Where a value came from, for `runner serve --show-config`."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@attrs.frozen(kw_only=True)
class Settings:
    """Everything a daemon is told. Durations in seconds, sizes in bytes, `inf` for "never".

    `memory_budget_bytes` None bounds nothing beyond what is free; `memory_reserve_bytes` None is the default
    reserve. `threads` are cores that all workers share, 0 means all usable ones. `idle_exit_s` ends the
    daemon that long after its last client, `inf` never.
    """

    host: str
    port: int
    socket: Path
    store: Path
    log_level: str
    log_file: Path | None
    engine: str
    keep_alive_s: float
    context_size: int
    max_sequences: int
    threads: int
    spare_worker: bool
    memory_budget_bytes: int | None
    memory_reserve_bytes: int | None
    swap_wait_s: float
    min_residency_s: float
    queue_limit: int
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    drain_s: float
    idle_exit_s: float


@attrs.frozen
class Option:
    """One setting: how it is read from text, what it is by default, and a line of help."""

    name: str
    parse: Callable[[str], Any]
    default: Callable[[], Any]
    help: str
    environment: str
    toml_types: tuple[type, ...] = (str,)


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise ValueError(f"{value} is outside {low} to {high}")
        return value

    return parse


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # `~name` of a user who does not exist
        raise ValueError(f"{text!r}: {error}") from None


def _socket(text: str) -> Path:
    path = _path(text)
    size_bytes = len(os.fsencode(path))
    if size_bytes > SOCKET_PATH_BYTES_MAX:
        raise ValueError(
            f"the path has {size_bytes} bytes, a socket's at most {SOCKET_PATH_BYTES_MAX}; use a shorter one"
        )
    return path


def _host(text: str) -> str:
    if text == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address to listen on") from None


def _duration(text: str) -> float:
    """Seconds; `-1` and `never` mean never."""
    if text == "never":
        return float("inf")
    value = parse_duration(text)
    if value == -1:
        return float("inf")
    if value < 0:
        raise ValueError(f"{text!r} is negative; use -1 for never")
    return value


def _list(parse_one: Callable[[str], str]) -> Callable[[str], tuple[str, ...]]:
    """Values between commas; empty ones are left out."""
    return lambda text: tuple(parse_one(part.strip()) for part in text.split(",") if part.strip())


def _host_name(text: str) -> str:
    """What a Host header may say; `box` also allows `box:PORT` with our own port."""
    if not _HOST_NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a host name; write box.example or box.example:8080, without wildcards"
        )
    return text.lower()


def _origin(text: str) -> str:
    """In the form in which browsers send it: lower case, no default port, nothing after the host."""
    if not _ORIGIN.fullmatch(text):
        raise ValueError(f"{text!r} is not a browser origin; write https://app.example, without wildcards")
    scheme, _, rest = text.lower().partition("://")
    return f"{scheme}://{rest.removesuffix(_DEFAULT_PORTS.get(scheme, ' '))}"


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError(f"{text!r} is not one of {', '.join(_FLAGS)}")
    return _FLAGS[text.lower()]


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text in ("", "auto", "none") else parse(text)


_HOST_NAME = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ORIGIN = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://{_HOST_NAME.pattern}")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_NUMBER = (int, str)
_FLAGS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}

OPTIONS: tuple[Option, ...] = (
    Option("host", _host, lambda: "127.0.0.1", "address to listen on", "RUNNER_LISTEN_HOST"),
    Option(
        "port",
        _integer(0, 65535),
        lambda: DEFAULT_PORT,
        "TCP port, 0 for any free one",
        "RUNNER_PORT",
        _NUMBER,
    ),
    Option("socket", _socket, default_socket, "unix socket", "RUNNER_SOCKET"),
    Option("store", _path, default_store, "directory of the model store", "RUNNER_STORE"),
    Option(
        "log_level", _one_of(LOG_LEVELS), lambda: "info", "debug, info, warning or error", "RUNNER_LOG_LEVEL"
    ),
    Option(
        "log_file", _optional(_path), lambda: None, "log to this file instead of stderr", "RUNNER_LOG_FILE"
    ),
    Option("engine", _one_of(ENGINES), lambda: "llama", "llama, or scripted for tests", "RUNNER_ENGINE"),
    Option(
        "keep_alive",
        _duration,
        lambda: 300.0,
        "how long an idle model stays loaded; -1 for ever",
        "RUNNER_KEEP_ALIVE",
        (int, float, str),
    ),
    Option(
        "context_size",
        _integer(256, 2**24),
        lambda: 8192,
        "tokens of one sequence, unless the model says less",
        "RUNNER_CONTEXT_SIZE",
        _NUMBER,
    ),
    Option(
        "max_sequences",
        _integer(1, 64),
        lambda: 8,
        "sequences that one model runs at once",
        "RUNNER_MAX_SEQUENCES",
        _NUMBER,
    ),
    Option(
        "threads",
        _integer(0, 1024),
        lambda: 0,
        "cores for all workers together, 0 for all that are usable",
        "RUNNER_THREADS",
        _NUMBER,
    ),
    Option(
        "spare_worker",
        _flag,
        lambda: True,
        "keep a process ready, so that the next model loads sooner",
        "RUNNER_SPARE_WORKER",
        (bool, str),
    ),
    Option(
        "memory_budget",
        _optional(parse_bytes),
        lambda: None,
        "bytes for models at most, by default all that is free but the reserve",
        "RUNNER_MEMORY_BUDGET",
        _NUMBER,
    ),
    Option(
        "memory_reserve",
        _optional(parse_bytes),
        lambda: None,
        "bytes left alone, by default a tenth of the memory, 512MiB to 4GiB",
        "RUNNER_MEMORY_RESERVE",
        _NUMBER,
    ),
    Option(
        "swap_wait",
        _duration,
        lambda: 30.0,
        "how long requests for a loaded model may keep another waiting",
        "RUNNER_SWAP_WAIT",
        (int, float, str),
    ),
    Option(
        "min_residency",
        _duration,
        lambda: 5.0,
        "how long a model with requests stays loaded at least",
        "RUNNER_MIN_RESIDENCY",
        (int, float, str),
    ),
    Option(
        "queue_limit",
        _integer(1, 4096),
        lambda: 64,
        "requests that may wait for one model",
        "RUNNER_QUEUE_LIMIT",
        _NUMBER,
    ),
    Option(
        "allowed_hosts",
        _list(_host_name),
        lambda: (),
        "further Host names to accept, comma-separated",
        "RUNNER_ALLOWED_HOSTS",
        (str, list),
    ),
    Option(
        "allowed_origins",
        _list(_origin),
        lambda: (),
        "browser origins to accept, comma-separated",
        "RUNNER_ALLOWED_ORIGINS",
        (str, list),
    ),
    Option(
        "drain",
        _duration,
        lambda: 30.0,
        "how long running requests may finish at shutdown",
        "RUNNER_DRAIN",
        (int, float, str),
    ),
    Option(
        "idle_exit",
        _duration,
        lambda: float("inf"),
        "end this long after the last client; -1 for never",
        "RUNNER_IDLE_EXIT",
        (int, float, str),
    ),
)

_FIELD_OF = {
    "keep_alive": "keep_alive_s",
    "memory_budget": "memory_budget_bytes",
    "memory_reserve": "memory_reserve_bytes",
    "swap_wait": "swap_wait_s",
    "min_residency": "min_residency_s",
    "drain": "drain_s",
    "idle_exit": "idle_exit_s",
}


@attrs.frozen
class Resolved:
    """The settings, and for every option where its value came from."""

    settings: Settings
    origins: Mapping[str, Origin]

    def by_option(self) -> dict[str, Any]:
        """The values under the names of their options."""
        return {
            option.name: getattr(self.settings, _FIELD_OF.get(option.name, option.name)) for option in OPTIONS
        }


def resolve(
    flags: Mapping[str, str | None], environment: Mapping[str, str], file: Path | None = None
) -> Resolved:
    """One value per option; raises `StartRefused` listing every fault of every source.

    `flags` maps option names to text, None for absent ones. `file` defaults to the user's config file, which
    may be missing; one named explicitly may not.
    """
    faults: list[str] = []
    from_file = _read_file(file, faults)
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for option in OPTIONS:
        text, origin, place = _pick(option, flags, environment, from_file, file)
        origins[option.name] = origin
        try:
            values[_FIELD_OF.get(option.name, option.name)] = (
                option.default() if text is None else option.parse(text)
            )
        except ValueError as error:
            faults.append(f"{place}: {error}")
    if faults:
        raise StartRefused("the settings are not usable:\n  " + "\n  ".join(faults))
    return Resolved(Settings(**values), origins)


def _pick(
    option: Option,
    flags: Mapping[str, str | None],
    environment: Mapping[str, str],
    from_file: Mapping[str, str],
    file: Path | None,
) -> tuple[str | None, Origin, str]:
    """The text that counts, where it is from, and what a fault in it is called."""
    flag = flags.get(option.name)
    if flag is not None:
        return flag, Origin.FLAG, f"--{option.name.replace('_', '-')}"
    if environment.get(option.environment):
        return environment[option.environment], Origin.ENVIRONMENT, option.environment
    if option.name in from_file:
        return from_file[option.name], Origin.FILE, f"{file or config_file()}: {option.name}"
    return None, Origin.DEFAULT, option.name


def _read_file(file: Path | None, faults: list[str]) -> dict[str, str]:
    """Option name → text; unknown keys, wrong types and newer versions are faults, and the file is kept."""
    path = file if file is not None else config_file()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file is not None:
            faults.append(f"{path}: no such file")
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        faults.append(f"{path}: {error}")
        return {}
    version = document.pop("version", CONFIG_VERSION)
    if isinstance(version, bool) or version != CONFIG_VERSION:
        faults.append(
            f"{path}: version {version!r} is not {CONFIG_VERSION}; it was written for another release"
        )
        return {}
    return _checked(document, path, faults)


_TOML_NAMES: Mapping[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
}


def _is_of(value: object, types: tuple[type, ...]) -> bool:
    """A truth value is no number here."""
    return bool in types if isinstance(value, bool) else isinstance(value, types)


def _checked(document: Mapping[str, Any], path: Path, faults: list[str]) -> dict[str, str]:
    known = {option.name: option for option in OPTIONS}
    values: dict[str, str] = {}
    for key, value in document.items():
        option = known.get(key)
        if option is None:
            faults.append(f"{path}: {key}: no such setting")
        elif not _is_of(value, option.toml_types):
            wanted = " or ".join(_TOML_NAMES[kind] for kind in option.toml_types)
            faults.append(f"{path}: {key}: {wanted} is due")
        elif isinstance(value, list):
            if all(isinstance(entry, str) for entry in value):
                values[key] = ",".join(value)
            else:
                faults.append(f"{path}: {key}: a list of strings is due")
        else:
            values[key] = str(value)
    return values
