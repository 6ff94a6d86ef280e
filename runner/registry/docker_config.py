"""Docker's `config.json`: who is logged in where, and which helpers keep the passwords.

Owns reading it without trusting it, and replacing it whole (K03). What we do not know in it stays. Imports
errors. Which of it wins: `credentials.py`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import attrs
import orjson

from runner.domain.transfer import RemoteCredentials
from runner.errors import CredentialsFailed

log = logging.getLogger(__name__)

CONFIG_BYTES_MAX: Final = 1 << 20
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@attrs.frozen
class DockerConfig:
    """What the file says. `members` is the whole document."""

    members: Mapping[str, Any] = attrs.field(factory=dict, repr=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file, empty when there is none. Warns when others may read it. Raises CredentialsFailed."""
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(CONFIG_BYTES_MAX + 1)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise CredentialsFailed(f"{path.name} cannot be read: {error.strerror}") from None
        if mode & _OTHERS:
            log.warning("%s holds logins and may be read by other users; `chmod 600` it", path.name)
        if len(content) > CONFIG_BYTES_MAX:
            raise CredentialsFailed(f"{path.name} is larger than {CONFIG_BYTES_MAX} bytes")
        return cls.parse(content, path.name)

    @classmethod
    def parse(cls, content: bytes, name: str) -> Self:
        """The document in these bytes. Raises CredentialsFailed, quoting none of it."""
        if not content.strip():
            return cls()
        try:
            members = orjson.loads(content)
        except ValueError:
            raise CredentialsFailed(f"{name} is not JSON") from None
        if not isinstance(members, dict):
            raise CredentialsFailed(f"{name} holds no JSON object")
        return cls(members)

    def helper(self, server: str) -> str | None:
        """The helper that keeps the password of this server: its own, else the one of all servers."""
        own = _member(self.members, "credHelpers").get(server)
        every = self.members.get("credsStore")
        chosen = own or every
        return chosen if isinstance(chosen, str) and chosen else None

    def credentials(self, server: str) -> RemoteCredentials | None:
        """What stands in the file itself for this server, however it spells the server's name."""
        auths = _member(self.members, "auths")
        for name, entry in auths.items():
            if isinstance(entry, dict) and (name == server or normal_server(name) == normal_server(server)):
                found = _credentials(entry)
                if found is not None:
                    return found
        return None

    def with_login(self, server: str, credentials: RemoteCredentials | None) -> Self:
        """The same with these credentials for this server; with None, its helper is said to have them."""
        auths = {**self._without(server), server: {} if credentials is None else _entry(credentials)}
        return attrs.evolve(self, members={**self.members, "auths": auths})

    def without_login(self, server: str) -> Self:
        return attrs.evolve(self, members={**self.members, "auths": self._without(server)})

    def has_login(self, server: str) -> bool:
        return self._without(server) != _member(self.members, "auths")

    def _without(self, server: str) -> dict[str, Any]:
        auths = _member(self.members, "auths")
        return {name: entry for name, entry in auths.items() if normal_server(name) != normal_server(server)}

    def write(self, path: Path) -> None:
        """Replace the file, readable for its owner only; a link is followed. Raises CredentialsFailed."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            target = path.resolve()
            _replace(target, orjson.dumps(dict(self.members), option=orjson.OPT_INDENT_2) + b"\n")
        except OSError as error:
            raise CredentialsFailed(f"{path.name} cannot be written: {error.strerror}") from None


def _replace(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def normal_server(name: str) -> str:
    """A server as docker's tools spell it, without scheme, trailing slash and version: `index.docker.io`."""
    name = name.partition("://")[2] or name
    return name.rstrip("/").removesuffix("/v1").removesuffix("/v2").lower()


def _member(members: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = members.get(name)
    return value if isinstance(value, dict) else {}


def _credentials(entry: Mapping[str, Any]) -> RemoteCredentials | None:
    """1. An identity token. 2. Name and password. 3. Both in `auth`, base64 of `name:password`."""
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return RemoteCredentials(identity_token=token)
    username, password = entry.get("username"), entry.get("password")
    if isinstance(username, str) and isinstance(password, str) and username:
        return RemoteCredentials(username=username, password=password)
    return _decoded(entry.get("auth"))


def _decoded(auth: object) -> RemoteCredentials | None:
    if not isinstance(auth, str) or not auth:
        return None
    try:
        username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    password = password.rstrip("\0")  # docker's own reader does, for files that old versions wrote
    return RemoteCredentials(username=username, password=password) if colon and username else None


def _entry(credentials: RemoteCredentials) -> dict[str, str]:
    if credentials.identity_token is not None:
        return {"identitytoken": credentials.identity_token}
    pair = f"{credentials.username or ''}:{credentials.password or ''}"
    return {"auth": base64.b64encode(pair.encode()).decode()}
