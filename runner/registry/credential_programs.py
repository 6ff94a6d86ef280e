"""Credential helpers: the programs that keep docker's passwords elsewhere (K02).

Owns which programs may be started and how: by a checked name, without a shell, the server on stdin, within a
deadline, with a bounded answer. Imports errors. Who asks them: `credentials.py`; the protocol is docker's
(`get`, `store`, `erase`).
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import IO, Final

import attrs
import orjson

from runner.domain.transfer import RemoteCredentials
from runner.errors import CredentialsFailed

DEADLINE_S: Final = 10.0
OUTPUT_BYTES_MAX: Final = 64 << 10
_NAME: Final = re.compile(r"[a-z0-9-]{1,64}")
_NOT_FOUND: Final = b"credentials not found in native keychain"  # docker's own text, and how its client tells
_IDENTITY_USER: Final = "<token>"
_ENVIRONMENT: Final = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "GNUPGHOME",
    "PASSWORD_STORE_DIR",
    "DOCKER_CONFIG",
)
_ENVIRONMENT_PREFIXES: Final = ("LC_", "AWS_", "GOOGLE_", "CLOUDSDK_", "AZURE_", "ECR_")
"""What helpers of desktops and clouds read. Nothing else of ours is theirs to see."""


@attrs.frozen
class CredentialProgram:
    """`docker-credential-<suffix>` on the PATH of `environment`."""

    suffix: str
    environment: Mapping[str, str] = attrs.field(repr=False)
    deadline_s: float = DEADLINE_S
    clock: Callable[[], float] = time.monotonic

    def get(self, server: str) -> RemoteCredentials | None:
        """What it has for this server, None when nothing. Raises CredentialsFailed."""
        status, output = self._run("get", server.encode())
        if status != 0:
            if output.strip().startswith(_NOT_FOUND):
                return None
            raise CredentialsFailed(f"{self._name} failed with exit code {status}")
        try:
            document = orjson.loads(output)
            username, secret = document["Username"], document["Secret"]
        except (ValueError, LookupError, TypeError):
            raise CredentialsFailed(f"{self._name} answered with something else than credentials") from None
        if not isinstance(username, str) or not isinstance(secret, str) or not secret:
            return None
        if username == _IDENTITY_USER:
            return RemoteCredentials(identity_token=secret)
        return RemoteCredentials(username=username, password=secret)

    def store(self, server: str, credentials: RemoteCredentials) -> None:
        """Let it keep a name and password for this server. Raises CredentialsFailed."""
        is_token = credentials.identity_token is not None
        document = {
            "ServerURL": server,
            "Username": _IDENTITY_USER if is_token else credentials.username or "",
            "Secret": credentials.identity_token if is_token else credentials.password or "",
        }
        status, _ = self._run("store", orjson.dumps(document))
        if status != 0:
            raise CredentialsFailed(f"{self._name} could not store the credentials (exit code {status})")

    def erase(self, server: str) -> bool:
        """Let it forget what it has for this server; whether it had anything. Raises CredentialsFailed."""
        status, output = self._run("erase", server.encode())
        if status != 0 and not output.strip().startswith(_NOT_FOUND):
            raise CredentialsFailed(f"{self._name} could not erase the credentials (exit code {status})")
        return status == 0

    @property
    def _name(self) -> str:
        return f"docker-credential-{self.suffix[:64]}"

    def _run(self, action: str, given: bytes) -> tuple[int, bytes]:
        """Exit code and stdout. The secret, if any, is in `given`, which goes to stdin."""
        if _NAME.fullmatch(self.suffix) is None:
            raise CredentialsFailed(f"{self.suffix[:64]!r} is no name of a credential helper")
        path = shutil.which(self._name, path=self.environment.get("PATH", os.defpath))
        if path is None:
            raise CredentialsFailed(f"{self._name} is not on the PATH")
        ends_s = self.clock() + self.deadline_s
        try:
            program = subprocess.Popen(
                [path, action],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_allowed(self.environment),
                start_new_session=True,
            )
        except OSError as error:
            raise CredentialsFailed(f"{self._name} cannot be started: {error.strerror}") from None
        with program:
            try:
                output = self._converse(program, given, ends_s)
                return program.wait(max(0.0, ends_s - self.clock())), output
            except subprocess.TimeoutExpired:
                raise CredentialsFailed(f"{self._name} took longer than {self.deadline_s:g} s") from None
            finally:
                _end(program)

    def _converse(self, program: subprocess.Popen[bytes], given: bytes, ends_s: float) -> bytes:
        """Everything the program prints, once it has closed its output."""
        assert program.stdin is not None
        assert program.stdout is not None
        output = b""
        with selectors.DefaultSelector() as selector:
            for pipe, event in (
                (program.stdin, selectors.EVENT_WRITE),
                (program.stdout, selectors.EVENT_READ),
            ):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, event)
            while True:
                left_s = ends_s - self.clock()
                if left_s <= 0:
                    raise subprocess.TimeoutExpired(self._name, self.deadline_s)
                ready = {key.fileobj for key, _ in selector.select(left_s)}
                if program.stdin in ready:
                    given = _written(program.stdin, given)
                    if not given:
                        selector.unregister(program.stdin)
                        _close(program.stdin)
                if program.stdout in ready:
                    piece = os.read(program.stdout.fileno(), OUTPUT_BYTES_MAX)
                    output += piece
                    if len(output) > OUTPUT_BYTES_MAX:
                        raise CredentialsFailed(f"{self._name} printed more than {OUTPUT_BYTES_MAX} bytes")
                    if not piece:
                        return output


def _written(pipe: IO[bytes], given: bytes) -> bytes:
    """What is still to be written; nothing when the program does not listen."""
    try:
        return given[os.write(pipe.fileno(), given) :]
    except BrokenPipeError:
        return b""


def _close(pipe: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def _allowed(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }


def _end(program: subprocess.Popen[bytes]) -> None:
    """Kill what has not ended, with everything it started, and reap it."""
    if program.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    if program.stdin is not None:
        _close(program.stdin)
    program.wait()
