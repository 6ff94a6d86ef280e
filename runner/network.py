"""The way to registries and hubs as it is configured: rules, credentials, clients, built from settings.

For the daemon, and for `runner ctl login`, which must reach a registry just as the daemon will. Imports
settings and `runner.registry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Final

from runner.config import Settings
from runner.errors import CredentialsFailed, StartRefused
from runner.registry.client import RegistryClient
from runner.registry.credentials import CredentialSource, docker_config_path
from runner.registry.huggingface import Hub
from runner.registry.proxies import Proxies
from runner.registry.rules import BadUrl, NetworkRules
from runner.registry.transport import Door

HUB_TOKEN: Final = "HF_TOKEN"  # noqa: S105  # the name of a variable


def network_rules(settings: Settings, environment: Mapping[str, str]) -> NetworkRules:
    """What the user allows; proxies come from the environment alone."""
    return NetworkRules(
        insecure=frozenset(settings.insecure_registries),
        unverified=frozenset(settings.unverified_registries),
        ca_files=dict(settings.registry_ca_files),
        allowed_private=frozenset(settings.private_registries),
        mirrors=_grouped(settings.registry_mirrors),
        realms=_grouped(settings.registry_realms),
        proxies=Proxies.from_environment(environment),
        user_agent=f"runner/{package_version('runner')}",
    )


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """All hosts of each registry, in order."""
    grouped: dict[str, tuple[str, ...]] = {}
    for registry, host in pairs:
        grouped[registry] = (*grouped.get(registry, ()), host)
    return grouped


def credential_source(environment: Mapping[str, str]) -> CredentialSource:
    """Logins as docker's tools keep them, of the user who runs this process."""
    if environment.get("DOCKER_CONFIG"):
        return CredentialSource(environment, docker_config_path(environment, Path()))
    try:
        return CredentialSource(environment, docker_config_path(environment, Path.home()))
    except RuntimeError:  # a user without an entry, and no HOME
        return CredentialSource(environment, None)


def registry_client(door: Door, environment: Mapping[str, str]) -> RegistryClient:
    return RegistryClient(door, credential_source(environment))


def hub(settings: Settings, door: Door, environment: Mapping[str, str]) -> Hub:
    """Raises StartRefused for an endpoint or token that cannot be used."""
    try:
        return Hub(door, endpoint=settings.hub_endpoint, token=environment.get(HUB_TOKEN))
    except BadUrl as error:
        raise StartRefused(f"the settings are not usable:\n  hub_endpoint: {error}") from error
    except CredentialsFailed as error:
        raise StartRefused(f"{HUB_TOKEN} is not usable: {error}") from error
