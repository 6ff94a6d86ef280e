"""Every setting of the daemon: its name, how it is read from text, what it is by default, a line of help.

Where values come from is `runner/config.py`. Imports places and units.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs

from runner.places import default_socket, default_store
from runner.units import parse_bytes, parse_duration

DEFAULT_PORT = 12434
SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux, less its final zero
LOG_LEVELS = ("debug", "info", "warning", "error")
ENGINES = ("llama", "scripted")

T = TypeVar("T")


@attrs.frozen
class Option:
    """One setting: how it is read from text, what it is by default, and a line of help.

    `shared` is a variable of other programs too, which counts when nobody has told us anything else.
    """

    name: str
    parse: Callable[[str], Any]
    default: Callable[[], Any]
    help: str
    environment: str
    toml_types: tuple[type, ...] = (str,)
    shared: str | None = None


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


def _size_or_off(text: str) -> int:
    """Bytes; `off` is none."""
    return 0 if text == "off" else parse_bytes(text)


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


def _registry(text: str) -> str:
    """As it stands in the name of a model: `registry.example:5000`, `docker.io`."""
    if not _HOST_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a registry; write registry.example or registry.example:5000")
    return text.lower()


def _pairs(parse_value: Callable[[str], T]) -> Callable[[str], tuple[tuple[str, T], ...]]:
    """`REGISTRY=VALUE` between commas; a registry may stand in several."""

    def parse(text: str) -> tuple[tuple[str, T], ...]:
        pairs = []
        for part in (part.strip() for part in text.split(",") if part.strip()):
            registry, equals, value = part.partition("=")
            if not equals or not value.strip():
                raise ValueError(f"{part!r} is not of the form REGISTRY=VALUE")
            pairs.append((_registry(registry.strip()), parse_value(value.strip())))
        return tuple(pairs)

    return parse


def _mirror(text: str) -> str:
    if not _MIRROR.fullmatch(text):
        raise ValueError(f"{text!r} is not a mirror; write mirror.example or https://mirror.example/path")
    return text


def _endpoint(text: str) -> str:
    if not _ENDPOINT.fullmatch(text):
        raise ValueError(f"{text!r} is not a URL; write https://hub.example")
    return text.rstrip("/")


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError(f"{text!r} is not one of {', '.join(_FLAGS)}")
    return _FLAGS[text.lower()]


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text in ("", "auto", "none") else parse(text)


_HOST_NAME = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ORIGIN = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://{_HOST_NAME.pattern}")
_ENDPOINT = re.compile(rf"https?://{_HOST_NAME.pattern}(?:/[A-Za-z0-9._/-]*)?")
_MIRROR = re.compile(rf"(?:https?://)?{_HOST_NAME.pattern}(?:/[A-Za-z0-9._/-]*)?")
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
    Option(
        "insecure_registries",
        _list(_registry),
        lambda: (),
        "registries spoken to over plain http, without credentials; loopback needs no mention",
        "RUNNER_INSECURE_REGISTRIES",
        (str, list),
    ),
    Option(
        "unverified_registries",
        _list(_registry),
        lambda: (),
        "registries whose TLS certificates are not verified",
        "RUNNER_UNVERIFIED_REGISTRIES",
        (str, list),
    ),
    Option(
        "registry_ca_files",
        _pairs(_path),
        lambda: (),
        "REGISTRY=FILE: certificates (PEM) that are trusted for it besides the system's",
        "RUNNER_REGISTRY_CA_FILES",
        (str, list, dict),
    ),
    Option(
        "registry_mirrors",
        _pairs(_mirror),
        lambda: (),
        "REGISTRY=MIRROR: hosts to pull from before the registry itself is asked",
        "RUNNER_REGISTRY_MIRRORS",
        (str, list, dict),
    ),
    Option(
        "registry_realms",
        _pairs(_registry),
        lambda: (),
        "REGISTRY=HOST: hosts its tokens may come from besides its own",
        "RUNNER_REGISTRY_REALMS",
        (str, list, dict),
    ),
    Option(
        "private_registries",
        _list(_registry),
        lambda: (),
        "hosts at private addresses that a registry at one may send us to",
        "RUNNER_PRIVATE_REGISTRIES",
        (str, list),
    ),
    Option(
        "hub_endpoint",
        _endpoint,
        lambda: "https://huggingface.co",
        "where models named hf.co/… come from; else HF_ENDPOINT says so",
        "RUNNER_HUB_ENDPOINT",
        shared="HF_ENDPOINT",
    ),
    Option(
        "transfers_at_once",
        _integer(1, 16),
        lambda: 2,
        "pulls, and pushes, that run at once; others wait",
        "RUNNER_TRANSFERS_AT_ONCE",
        _NUMBER,
    ),
    Option(
        "connections",
        _integer(1, 64),
        lambda: 12,
        "connections that all transfers together may use",
        "RUNNER_CONNECTIONS",
        _NUMBER,
    ),
    Option(
        "disk_reserve",
        parse_bytes,
        lambda: 2**30,
        "bytes of the store's disk that no pull takes",
        "RUNNER_DISK_RESERVE",
        _NUMBER,
    ),
    Option(
        "cache_disk",
        _size_or_off,
        lambda: 4 * 2**30,
        "bytes of disk for what is saved of caches, or off",
        "RUNNER_CACHE_DISK",
        _NUMBER,
    ),
)
