"""Settings from flags, environment and file, resolved once, with every fault reported together.

Order: flag, then `RUNNER_…` in the environment, then `config.toml` in the user's config directory, then a
variable that other programs share, then the default. An empty variable counts as absent. Below
`runner/daemon.py` nobody knows settings: constructors take values. Imports errors and `runner/options.py`,
where each setting stands.
"""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from runner.errors import StartRefused
from runner.options import OPTIONS as OPTIONS
from runner.options import Option as Option
from runner.places import config_file

CONFIG_VERSION = 1


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
    daemon that long after its last client, `inf` never. Registries are named as in references to models:
    `insecure_registries` are spoken to without encryption, `unverified_registries` without a look at their
    certificates; `registry_ca_files`, `registry_mirrors` and `registry_realms` are pairs of a registry and a
    file or host. `cache_disk_bytes` 0 saves nothing of models' caches.
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
    insecure_registries: tuple[str, ...]
    unverified_registries: tuple[str, ...]
    registry_ca_files: tuple[tuple[str, Path], ...]
    registry_mirrors: tuple[tuple[str, str], ...]
    registry_realms: tuple[tuple[str, str], ...]
    private_registries: tuple[str, ...]
    hub_endpoint: str
    transfers_at_once: int
    connections: int
    disk_reserve_bytes: int
    cache_disk_bytes: int


_FIELD_OF = {
    "keep_alive": "keep_alive_s",
    "memory_budget": "memory_budget_bytes",
    "memory_reserve": "memory_reserve_bytes",
    "swap_wait": "swap_wait_s",
    "min_residency": "min_residency_s",
    "drain": "drain_s",
    "idle_exit": "idle_exit_s",
    "disk_reserve": "disk_reserve_bytes",
    "cache_disk": "cache_disk_bytes",
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
    if option.shared is not None and environment.get(option.shared):
        return environment[option.shared], Origin.ENVIRONMENT, option.shared
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
    dict: "a table",
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
        elif isinstance(value, list | dict):
            entries = _entries(value)
            if all(isinstance(entry, str) for _, entry in entries):
                values[key] = ",".join(named + entry for named, entry in entries)
            else:
                faults.append(f"{path}: {key}: strings are due")
        else:
            values[key] = str(value)
    return values


def _entries(value: Any) -> list[tuple[str, Any]]:
    """Of a list, its members; of a table, its members with their names, of which one may hold a list."""
    if isinstance(value, list):
        return [("", entry) for entry in value]
    return [
        (f"{name}=", entry)
        for name, entries in value.items()
        for entry in (entries if isinstance(entries, list) else [entries])
    ]
