"""Debian's docker-registry on loopback: plain, with TLS, with passwords, with tokens of a server beside it.

All its files lie in one temporary directory; it is ended by its process id.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest
import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509 import load_pem_x509_certificate

USERNAME = "canary-user-2b"
PASSWORD = "pw-canary-7c3d"
_PASSWORD_BCRYPT = "$2b$04$abcdefghijklmnopqrstuu0LZ6IloGsF3Bllrcgha7418.wLHUtke"  # of the password above
_START_S = 20.0
_SERVICE = "registry.test"
_ISSUER = "issuer.test"


@attrs.define
class RealRegistry:
    """`host` is how references name it (`127.0.0.1:40001`); `log` are its lines so far."""

    host: str
    scheme: str
    directory: Path
    log: list[str] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def blobs(self) -> set[str]:
        """Hex digests of all content it stores."""
        found = self.directory.glob("data/docker/registry/v2/blobs/sha256/*/*/data")
        return {path.parent.name for path in found}


@contextmanager
def docker_registry(
    directory: Path,
    *,
    certificate: trustme.LeafCert | None = None,
    needs_password: bool = False,
    tokens: TokenServer | None = None,
) -> Iterator[RealRegistry]:
    """A registry on a free port until the block ends."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.fail("docker-registry is missing; install the package `docker-registry`")
    directory.mkdir(parents=True, exist_ok=True)
    host = f"127.0.0.1:{_free_port()}"
    registry = RealRegistry(host, "https" if certificate else "http", directory)
    config = directory / "config.yml"
    config.write_text(json.dumps(_config(registry, certificate, needs_password, tokens)))  # JSON is YAML
    process = subprocess.Popen(
        [program, "serve", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")},
        text=True,
    )
    is_listening = threading.Event()
    reader = threading.Thread(target=_read_log, args=(process, registry, is_listening), name="registry log")
    reader.start()
    try:
        assert is_listening.wait(_START_S) and process.poll() is None, "\n".join(registry.log)
        yield registry
    finally:
        process.terminate()
        process.wait(timeout=10)
        reader.join()


def _read_log(process: subprocess.Popen[str], registry: RealRegistry, is_listening: threading.Event) -> None:
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            registry.log.append(line)
            if "listening on" in line:
                is_listening.set()
    is_listening.set()  # it has ended; whoever waits looks at the process


def _config(
    registry: RealRegistry,
    certificate: trustme.LeafCert | None,
    needs_password: bool,
    tokens: TokenServer | None,
) -> dict[str, Any]:
    directory = registry.directory
    http: dict[str, Any] = {"addr": registry.host, "secret": "of-uploads-under-way"}
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
        "http": http,
    }
    if certificate is not None:
        chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
        (directory / "chain.pem").write_bytes(chain)
        (directory / "key.pem").write_bytes(certificate.private_key_pem.bytes())
        http["tls"] = {"certificate": str(directory / "chain.pem"), "key": str(directory / "key.pem")}
    if needs_password:
        (directory / "htpasswd").write_text(f"{USERNAME}:{_PASSWORD_BCRYPT}\n")
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    if tokens is not None:
        (directory / "bundle.pem").write_bytes(tokens.authority.cert_pem.bytes())
        config["auth"] = {
            "token": {
                "realm": f"{tokens.url}/token",
                "service": _SERVICE,
                "issuer": _ISSUER,
                "rootcertbundle": str(directory / "bundle.pem"),
            }
        }
    return config


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# tokens


@attrs.define
class TokenServer:
    """Signs what it is asked for; pushing takes the password. `requests`: (method, path, authorization)."""

    authority: trustme.CA
    url: str = ""
    lifetime_s: int = 300
    requests: list[tuple[str, str, str | None]] = attrs.field(factory=list)
    granted: list[str] = attrs.field(factory=list)  # the tokens themselves, which are secrets
    is_login_needed: bool = False
    _leaf: trustme.LeafCert = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._leaf = self.authority.issue_cert(_SERVICE, key_type=trustme.KeyType.ECDSA)

    def token(self, scopes: list[str], subject: str) -> str:
        """A signed JWT in the form that the registry checks: ES256, the certificate in its head."""
        certificate = load_pem_x509_certificate(self._leaf.cert_chain_pems[0].bytes())
        der = certificate.public_bytes(serialization.Encoding.DER)
        now_s = int(time.time())
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": _ISSUER,
            "sub": subject,
            "aud": _SERVICE,
            "exp": now_s + self.lifetime_s,
            "nbf": now_s - 5,
            "iat": now_s,
            "jti": f"token-{len(self.granted)}",
            "access": [_access(scope) for scope in scopes],
        }
        signed = f"{_encoded(json.dumps(head).encode())}.{_encoded(json.dumps(claims).encode())}"
        token = f"{signed}.{_encoded(self._signature(signed.encode()))}"
        self.granted.append(token)
        return token

    def _signature(self, content: bytes) -> bytes:
        key = serialization.load_pem_private_key(self._leaf.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(content, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@contextmanager
def token_server(certificate: trustme.LeafCert | None = None) -> Iterator[TokenServer]:
    """A token server on loopback until the block ends; over TLS with a certificate."""
    tokens = TokenServer(trustme.CA(key_type=trustme.KeyType.ECDSA))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_TokenAnswers,), {"tokens": tokens}))
    server.daemon_threads = False
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    tokens.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="token server"
    )
    thread.start()
    try:
        yield tokens
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _TokenAnswers(BaseHTTPRequestHandler):
    tokens: TokenServer
    timeout = 10.0

    def do_GET(self) -> None:
        authorization = self.headers["Authorization"]
        self.tokens.requests.append((self.command, self.path, authorization))
        scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
        is_user = authorization == _basic()
        needs_user = self.tokens.is_login_needed or any("push" in scope for scope in scopes)
        if authorization is not None and not is_user:
            self._answer(401, {"details": "wrong password"})
        elif needs_user and not is_user:
            self._answer(401, {"details": "who are you?"})
        else:
            token = self.tokens.token(scopes, USERNAME if is_user else "")
            self._answer(200, {"token": token, "expires_in": self.tokens.lifetime_s})

    def _answer(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


def _basic() -> str:
    return "Basic " + base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()


def _access(scope: str) -> dict[str, object]:
    kind, rest = scope.split(":", 1)
    name, actions = rest.rsplit(":", 1)
    return {"type": kind, "name": name, "actions": actions.split(",")}


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
