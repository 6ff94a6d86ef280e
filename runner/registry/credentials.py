"""As whom to talk to which registry: the environment, docker's login file, credential helpers.

Owns the order in which they count, and logging in and out. Imports the file and the helpers. Blocks, for
threads: a helper may take its time. Nothing here is ever logged but the names of servers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import attrs

from runner.domain.transfer import RemoteCredentials
from runner.errors import CredentialsFailed, FieldFault, InvalidParameter
from runner.oci.reference import DEFAULT_REGISTRY
from runner.registry.credential_programs import CredentialProgram
from runner.registry.docker_config import DockerConfig

log = logging.getLogger(__name__)

HUB_SERVER: Final = "https://index.docker.io/v1/"
"""What docker's tools call Docker Hub in login files and towards helpers."""

_KEPT_S: Final = 60.0
_KEPT_MAX: Final = 64
_HUB_VARIABLES: Final = (("DOCKER_USERNAME", "DOCKER_PASSWORD"), ("DOCKER_HUB_USER", "DOCKER_HUB_PASSWORD"))


def server_of(registry: str) -> str:
    """A registry as docker's login file names it."""
    return HUB_SERVER if registry == DEFAULT_REGISTRY else registry


def docker_config_path(environment: Mapping[str, str], home: Path) -> Path:
    """`config.json` in `DOCKER_CONFIG`, else in `~/.docker`."""
    directory = environment.get("DOCKER_CONFIG")
    return (Path(directory) if directory else home / ".docker") / "config.json"


@attrs.frozen
class _Kept:
    credentials: RemoteCredentials | None
    stamp: tuple[int, ...]
    until_s: float


class CredentialSource:
    """Finds, stores and erases credentials. Thread-safe.

    What was found is kept for a minute, or until the login file changes, so that a helper is not started for
    every request.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        config_path: Path | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environment = environment
        self._config_path = config_path
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    def find(self, registry: str) -> RemoteCredentials | None:
        """What the user has for this registry and no other; None for nobody. Raises nothing.

        1. `RUNNER_REGISTRY_USERNAME` and `RUNNER_REGISTRY_PASSWORD`, for the one in `RUNNER_REGISTRY`.
        2. `DOCKER_USERNAME` and `DOCKER_PASSWORD` (or `DOCKER_HUB_USER`, `…PASSWORD`), for Docker Hub.
        3. The helper that docker's login file names for it.
        4. What the login file holds itself.
        A file or helper that fails is told in the log, and counts as having nothing.
        """
        found = self._in_environment(registry)
        if found is not None:
            return found
        stamp = self._stamp()
        with self._lock:
            kept = self._kept.get(registry)
            if kept is not None and kept.stamp == stamp and self._clock() < kept.until_s:
                return kept.credentials
            found = self._in_file(registry)
            if len(self._kept) >= _KEPT_MAX:
                self._kept.clear()
            self._kept[registry] = _Kept(found, stamp, self._clock() + _KEPT_S)
            return found

    def _stamp(self) -> tuple[int, ...]:
        """What changes when the login file does."""
        try:
            found = self._path().stat()
        except (OSError, CredentialsFailed):
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def store(self, registry: str, credentials: RemoteCredentials) -> str:
        """Keep a login, with the helper that the file names, else in the file; where, for people.

        Raises CredentialsFailed, InvalidParameter for credentials that cannot be kept.
        """
        if credentials.identity_token is None and not (credentials.username and credentials.password):
            raise InvalidParameter(FieldFault("username", "a login needs a name and a password"))
        if ":" in (credentials.username or ""):
            raise InvalidParameter(FieldFault("username", "a name cannot hold a colon"))
        path, server = self._path(), server_of(registry)
        config = DockerConfig.read(path)
        helper = config.helper(server)
        if helper is not None:
            self._program(helper).store(server, credentials)
            config.with_login(server, None).write(path)
        else:
            config.with_login(server, credentials).write(path)
        return f"docker-credential-{helper}" if helper is not None else str(path)

    def erase(self, registry: str) -> bool:
        """Forget a login, in the helper and in the file; whether there was one. Raises CredentialsFailed."""
        path, server = self._path(), server_of(registry)
        config = DockerConfig.read(path)
        helper = config.helper(server)
        was_in_helper = helper is not None and self._program(helper).erase(server)
        was_in_file = config.has_login(server)
        if was_in_file:
            config.without_login(server).write(path)
        return was_in_helper or was_in_file

    def _path(self) -> Path:
        if self._config_path is None:
            raise CredentialsFailed(
                "there is no home directory to keep logins in; DOCKER_CONFIG names another"
            )
        return self._config_path

    def _program(self, suffix: str) -> CredentialProgram:
        return CredentialProgram(suffix, self._environment)

    def _in_environment(self, registry: str) -> RemoteCredentials | None:
        pairs: list[tuple[str, str]] = []
        if registry == (self._environment.get("RUNNER_REGISTRY") or "").lower():
            pairs.append(("RUNNER_REGISTRY_USERNAME", "RUNNER_REGISTRY_PASSWORD"))
        if registry == DEFAULT_REGISTRY:
            pairs.extend(_HUB_VARIABLES)
        for user_variable, password_variable in pairs:
            username, password = (
                self._environment.get(user_variable),
                self._environment.get(password_variable),
            )
            if username and password:
                return RemoteCredentials(username=username, password=password)
        return None

    def _in_file(self, registry: str) -> RemoteCredentials | None:
        if self._config_path is None:
            return None
        server = server_of(registry)
        try:
            config = DockerConfig.read(self._config_path)
        except CredentialsFailed as error:
            log.warning("no logins: %s", error)
            return None
        helper = config.helper(server)
        if helper is not None:
            try:
                found = self._program(helper).get(server)
            except CredentialsFailed as error:
                log.warning("no login for %s: %s", registry, error)
                found = None
            if found is not None:
                return found
        return config.credentials(server)
