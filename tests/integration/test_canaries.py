"""K01: secrets that are known to be there, and that must show nowhere.

One daemon at its most talkative level meets registries, a hub and a proxy, each behind a secret of its own,
in success and in failure. Afterwards everything that it wrote, said or answered is searched for the secrets.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import psutil
import pytest

from scripts.tiny_gguf import TinyModel, write_tiny_gguf
from tests.support.daemon import RunningDaemon, running_daemon
from tests.support.docker_registry import (
    PASSWORD,
    USERNAME,
    RealRegistry,
    TokenServer,
    docker_registry,
    token_server,
)
from tests.support.hub import SIGNATURE, ScriptedHub, ScriptedRepository, scripted_hub
from tests.support.proxy import ScriptedProxy, scripted_proxy

HUB_TOKEN = "hf_tokenCanary41"
WRONG_TOKEN = "hf_wrongTokenCanary52"
WRONG_PASSWORD = "wrongPasswordCanary63"
GIVEN_TOKEN = "givenTokenCanary74"
PROXY_PASSWORD = "proxyPasswordCanary85"
ENVIRONMENT_SECRET = "environmentCanary96"
GATED = "Org/Gated-GGUF"
BROKEN = "Org/Broken-GGUF"


@attrs.frozen(kw_only=True)
class Surroundings:
    daemon: RunningDaemon
    plain: RealRegistry
    password: RealRegistry
    token: RealRegistry
    tokens: TokenServer
    hub: ScriptedHub
    proxy: ScriptedProxy
    said: list[str]
    commands_seen: set[str]

    def runner(self, *arguments: str, stdin: str | None = None, **variables: str) -> str:
        """What a command says, whatever comes of it; `variables` are added to its environment."""
        environment = {**self.daemon.environment, **variables}
        asked = attrs.evolve(self.daemon, environment=environment)
        done = asked.runner(*arguments, stdin=stdin, check=False)
        self.said.extend((done.stdout, done.stderr))
        return f"{done.stdout}{done.stderr}"

    def secrets(self) -> dict[str, bytes]:
        """Every secret by a name for it, in each form in which it travels."""
        pair = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        proxy_pair = base64.b64encode(f"proxyUser:{PROXY_PASSWORD}".encode()).decode()
        plain = {
            "password of a registry": PASSWORD,
            "password of a registry, as sent": pair,
            "password in a command's environment": WRONG_PASSWORD,
            "token of the hub": HUB_TOKEN,
            "wrong token of the hub": WRONG_TOKEN,
            "token given with a request": GIVEN_TOKEN,
            "password of the proxy": PROXY_PASSWORD,
            "password of the proxy, as sent": proxy_pair,
            "signature of an address": SIGNATURE,
            "variable of the environment": ENVIRONMENT_SECRET,
            **{f"token {index} of a registry": token for index, token in enumerate(self.tokens.granted)},
        }
        return {name: secret.encode() for name, secret in plain.items()}


@pytest.fixture
def around(tmp_path: Path, tiny_model: Path) -> Iterator[Surroundings]:
    with (
        token_server() as tokens,
        docker_registry(tmp_path / "plain") as plain,
        docker_registry(tmp_path / "password", needs_password=True) as password,
        docker_registry(tmp_path / "token", tokens=tokens) as token,
        scripted_hub() as hub,
        scripted_proxy() as proxy,
    ):
        proxy.routes["registry.example"] = int(plain.host.rpartition(":")[2])
        other = TinyModel(name="Other", context_length=8192)
        weights = write_tiny_gguf(tmp_path / "other.gguf", other).read_bytes()
        hub.add(ScriptedRepository(name=GATED, files={"a-Q4_0.gguf": weights}, token=HUB_TOKEN, gated=True))
        broken = write_tiny_gguf(tmp_path / "broken.gguf", attrs.evolve(other, name="Broken"))
        hub.add(ScriptedRepository(name=BROKEN, files={"a-Q4_0.gguf": broken.read_bytes()}))
        (tmp_path / "daemon").mkdir()
        (tmp_path / "docker").mkdir()
        _log_in(tmp_path / "docker" / "config.json", password.host, token.host)
        hosts = [urlsplit(hub.content_url).netloc, urlsplit(tokens.url).netloc]
        settings = {
            "DOCKER_CONFIG": str(tmp_path / "docker"),
            "HF_ENDPOINT": hub.url,
            "HTTP_PROXY": proxy.url(f"proxyUser:{PROXY_PASSWORD}"),
            "RUNNER_INSECURE_REGISTRIES": "registry.example",
            "RUNNER_PRIVATE_REGISTRIES": ",".join(hosts),
            "RUNNER_LOG_LEVEL": "debug",
            "MY_SECRET": ENVIRONMENT_SECRET,
        }
        with running_daemon(tmp_path / "daemon", **settings) as daemon:
            daemon.package("one", tiny_model)
            yield Surroundings(
                daemon=daemon,
                plain=plain,
                password=password,
                token=token,
                tokens=tokens,
                hub=hub,
                proxy=proxy,
                said=[],
                commands_seen=set(),
            )


def _log_in(file: Path, *hosts: str) -> None:
    secret = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    file.write_text(json.dumps({"auths": {host: {"auth": secret} for host in hosts}}))
    file.chmod(0o600)


def test_K01_no_secret_shows_in_anything_that_was_written_said_or_answered(around: Surroundings) -> None:
    watching = threading.Event()
    watcher = threading.Thread(target=_watch_processes, args=(around, watching), name="watcher")
    watcher.start()
    try:
        _succeed(around)
        _fail(around)
        _look_at_everything(around)
    finally:
        watching.set()
        watcher.join()
    assert len(around.commands_seen) > 1
    leaks = [
        f"{name} in {place}"
        for place, content in _traces(around)
        for name, secret in around.secrets().items()
        if secret in content
    ]
    assert leaks == []


def _succeed(around: Surroundings) -> None:
    """Every secret does its work: all of a model goes out and comes in past it."""
    names = [f"{registry.host}/team/one:v1" for registry in (around.password, around.token, around.plain)]
    for name in names:
        assert "pushed" in around.runner("ctl", "push", "one", name)
    around.runner("ctl", "rm", "one")
    for name in *names[:2], "registry.example/team/one:v1":
        assert "pulled" in around.runner("ctl", "pull", name)
        around.runner("ctl", "rm", name)
    assert around.tokens.granted
    assert around.proxy.requests
    assert "pulled" in around.runner("ctl", "pull", f"hf.co/{GATED}", HF_TOKEN=HUB_TOKEN)
    assert around.runner("run", f"hf.co/{GATED}", "hello")


def _fail(around: Surroundings) -> None:
    """Every secret is there while something goes wrong."""
    assert "HF_TOKEN" in around.runner("ctl", "pull", f"hf.co/{GATED}:Q4_0", HF_TOKEN=WRONG_TOKEN)
    around.hub.content_failures += [(403, {"Retry-After": "0"})] * 1000
    assert "answered 403" in around.runner("ctl", "pull", f"hf.co/{BROKEN}")
    around.hub.content_failures.clear()
    around.hub.redirect_to = f"http://10.0.0.1/{BROKEN}?X-Signature={SIGNATURE}"
    assert "10.0.0.1" in around.runner("ctl", "pull", f"hf.co/{BROKEN}:Q4_0")
    assert "not there" in around.runner("ctl", "pull", f"{around.password.host}/no/such:v1")
    own = {"RUNNER_REGISTRY_USERNAME": "u", "RUNNER_REGISTRY_PASSWORD": WRONG_PASSWORD}
    name = f"{around.password.host}/team/one:v1"
    assert "login" in around.runner("ctl", "pull", name, RUNNER_REGISTRY=around.password.host, **own)
    around.proxy.routes.clear()
    assert "502" in around.runner("ctl", "pull", "registry.example/no/such:v1")
    login = ("ctl", "login", around.password.host, "--username", USERNAME, "--password-stdin")
    assert "credentials" in around.runner(*login, stdin=f"{WRONG_PASSWORD}\n")
    assert "logged in" in around.runner(*login, stdin=f"{PASSWORD}\n")
    body = {"reference": f"{around.token.host}/team/one:v1", "bearer_token": GIVEN_TOKEN}
    around.said.append(_posted(around, "/control/v1/pull", body))
    native = {"from": f"{around.token.host}/team/one:v1", "bearer-token": GIVEN_TOKEN}
    around.said.append(_posted(around, "/models/create", native))
    wrong = {"reference": f"{around.password.host}/a/b:v1", "username": "u", "password": WRONG_PASSWORD}
    around.said.append(_posted(around, "/control/v1/pull", wrong))


def _look_at_everything(around: Surroundings) -> None:
    for path in "/control/v1/status", "/control/v1/models", "/control/v1/transfers", "/control/v1/ps":
        around.said.append(_got(around, path))
    around.runner("ctl", "status", "--json")
    around.runner("ctl", "ls", "--json")


def _posted(around: Surroundings, path: str, body: dict[str, str]) -> str:
    request = urllib.request.Request(
        f"{around.daemon.url}{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    return _answer(request)


def _got(around: Surroundings, path: str) -> str:
    return _answer(urllib.request.Request(f"{around.daemon.url}{path}"))


def _answer(request: urllib.request.Request) -> str:
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(response.read(), "utf-8")
    except urllib.error.HTTPError as error:
        with error:
            return str(error.read(), "utf-8")


def _watch_processes(around: Surroundings, ended: threading.Event) -> None:
    """What the list of processes shows of the daemon, its children and of commands, while they run."""
    while not ended.wait(0.02):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                around.commands_seen.add(" ".join(process.cmdline()))


def _traces(around: Surroundings) -> Iterator[tuple[str, bytes]]:
    """Everything that outsiders may come to see, with a name for it."""
    yield "what was said", "\n".join(around.said).encode()
    yield "the list of processes", "\n".join(sorted(around.commands_seen)).encode()
    for pid in around.daemon.worker_pids():
        yield f"the environment of child {pid}", Path(f"/proc/{pid}/environ").read_bytes()
    for file in around.daemon.directory.rglob("*"):
        if file.is_file():
            yield str(file.relative_to(around.daemon.directory)), file.read_bytes()
