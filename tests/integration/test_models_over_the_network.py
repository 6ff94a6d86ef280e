"""Commands and native endpoints against a real daemon and a registry in memory: pull, run, push, repair."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import ModelConfig
from tests.support.daemon import RunningDaemon, running_daemon
from tests.support.registry_server import RegistryServer
from tests.support.scripted_http import Reply, Request, Talk, wait_for_close
from tests.support.terminal import on_terminal

LICENSE = b"Do what you like."


@pytest.fixture
def registry(tiny_model: Path) -> Iterator[RegistryServer]:
    """It has the model `team/tiny:v1`."""
    with RegistryServer() as server:
        add_model(server, tiny_model.read_bytes())
        yield server


@pytest.fixture(scope="module")
def network_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon without models, and without credentials of whoever runs the tests."""
    directory = tmp_path_factory.mktemp("daemon")
    with running_daemon(
        directory, DOCKER_CONFIG=str(directory / "docker"), HF_TOKEN="", RUNNER_SPARE_WORKER="no"
    ) as running:
        yield running


@pytest.fixture
def daemon(network_daemon: RunningDaemon) -> Iterator[RunningDaemon]:
    yield network_daemon
    network_daemon.runner("ctl", "unload", "--all")
    for model in models(network_daemon):
        network_daemon.runner("ctl", "rm", "--force", model["id"])


def add_model(server: RegistryServer, weights: bytes, tag: str = "v1") -> str:
    """The id of a model of these weights and a licence."""
    parts = (Descriptor.of(weights, media_types.GGUF), Descriptor.of(LICENSE, media_types.LICENSE))
    config = ModelConfig(
        format="gguf",
        quantization="F32",
        parameters="1M",
        architecture="llama",
        size="1MiB",
        metadata={"general.architecture": "llama", "llama.context_length": "8192"},
        context_size=None,
        created_s=1700000000,
        diff_ids=tuple(part.digest for part in parts),
    ).encode()
    for content in (config, weights, LICENSE):
        server.add_blob(content, "team/tiny")
    manifest = Manifest.binding(config, parts, media_types.DOCKER_CONFIG_V01).encode()
    return str(server.add_manifest(manifest, media_types.IMAGE_MANIFEST, tag, repository="team/tiny"))


def models(daemon: RunningDaemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(daemon.runner("ctl", "ls", "--json").stdout)
    return found


def name_of(registry: RegistryServer, tag: str = "v1") -> str:
    return f"{registry.netloc}/team/tiny:{tag}"


def test_run_pulls_what_is_missing_and_answers(daemon: RunningDaemon, registry: RegistryServer) -> None:
    done = daemon.runner("run", name_of(registry), "hello")
    assert done.stdout.strip()
    assert done.stderr.splitlines()[0] == f"{name_of(registry)} is not in the store; pulling it"
    assert f"pulled {name_of(registry)} (" in done.stderr
    n_requests = len(registry.requests)
    assert daemon.runner("run", name_of(registry), "hello").stderr == ""
    assert len(registry.requests) == n_requests


def test_start_pulls_too_and_no_pull_does_not(daemon: RunningDaemon, registry: RegistryServer) -> None:
    refused = daemon.runner("ctl", "start", name_of(registry), "--no-pull", check=False)
    assert refused.returncode == 4
    assert registry.requests == []
    assert "is loaded" in daemon.runner("ctl", "start", name_of(registry)).stderr


def test_a_request_over_http_never_pulls(daemon: RunningDaemon, registry: RegistryServer) -> None:
    body = {"model": name_of(registry), "messages": [{"role": "user", "content": "hello"}]}
    with pytest.raises(urllib.error.HTTPError) as refused:
        daemon.post("/v1/chat/completions", body)
    assert refused.value.code == 404
    assert json.loads(refused.value.read())["error"]["code"] == "model_not_found"
    assert registry.requests == []


def test_digests_work_wherever_names_do(daemon: RunningDaemon, registry: RegistryServer) -> None:
    model_id = next(name for _, name in registry.manifests if name.startswith("sha256:"))
    by_digest = f"{registry.netloc}/team/tiny@{model_id}"
    short = model_id.removeprefix("sha256:")[:12]
    assert daemon.runner("ctl", "pull", "-q", by_digest).stdout == f"{model_id}\n"
    [model] = models(daemon)
    assert (model["id"], model["tags"]) == (model_id, [])
    for name in (short, model_id, model_id.removeprefix("sha256:"), by_digest):
        assert daemon.runner("run", name, "hello").stdout.strip(), name
        body = {"model": name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        assert daemon.post("/v1/chat/completions", body)["choices"]
        inspected = json.loads(daemon.runner("ctl", "inspect", "--json", name).stdout)
        assert inspected["model"]["id"] == model_id
        assert daemon.runner("ctl", "verify", name).returncode == 0
    assert short in daemon.runner("ctl", "ps").stdout
    daemon.runner("ctl", "unload", short)
    daemon.runner("ctl", "tag", short, "ai/named")
    daemon.runner("ctl", "untag", "ai/named")
    for name in (short, model_id):
        refused = daemon.runner("ctl", "push", name, check=False)
        assert refused.returncode == 1
        assert "an id says nothing about where to push" in refused.stderr
    target = f"{registry.netloc}/other/tiny:v2"
    daemon.runner("ctl", "push", short, target)
    assert ("other/tiny", "v2") in registry.manifests
    assert Digest.of(registry.manifests["other/tiny", "v2"][0]) == Digest.parse(model_id)
    assert f"deleted {model_id}" in daemon.runner("ctl", "rm", short).stdout


def test_a_push_sends_only_what_is_missing(daemon: RunningDaemon, registry: RegistryServer) -> None:
    daemon.runner("ctl", "pull", name_of(registry))
    daemon.runner("ctl", "tag", name_of(registry), name_of(registry, "again"))
    done = daemon.runner("ctl", "push", name_of(registry, "again"))
    assert "nothing had to be sent" in done.stderr
    assert not [path for path in registry.paths("POST") if "uploads" in path]
    assert ("team/tiny", "again") in registry.manifests


def test_a_look_at_a_registry_fetches_no_weights(daemon: RunningDaemon, registry: RegistryServer) -> None:
    report = json.loads(daemon.runner("ctl", "inspect", "--remote", "--json", name_of(registry)).stdout)
    assert report["model"]["architecture"] == "llama"
    assert [layer["filename"] for layer in report["layers"]] == [None, None]
    assert len([path for path in registry.paths() if "/blobs/" in path]) == 1
    assert models(daemon) == []


def test_a_model_that_is_not_there_says_where_it_was_looked_for(
    daemon: RunningDaemon, registry: RegistryServer
) -> None:
    done = daemon.runner("ctl", "pull", name_of(registry, "v9"), check=False)
    assert done.returncode == 4
    assert registry.netloc in done.stderr and "v9" in done.stderr


def test_a_login_is_used_by_the_daemon(daemon: RunningDaemon, tiny_model: Path) -> None:
    with RegistryServer(password="pass-canary") as registry:
        add_model(registry, tiny_model.read_bytes())
        refused = daemon.runner("ctl", "pull", name_of(registry), check=False)
        assert refused.returncode == 1
        assert f"runner ctl login {registry.netloc}" in refused.stderr
        daemon.runner(
            "ctl", "login", registry.netloc, "-u", "user", "--password-stdin", stdin="pass-canary\n"
        )
        daemon.runner("ctl", "pull", name_of(registry))
        daemon.runner("ctl", "logout", registry.netloc)
        assert daemon.runner("ctl", "inspect", "-r", name_of(registry), check=False).returncode == 1
    assert "pass-canary" not in daemon.log


def test_S24_damage_is_found_and_mended(
    daemon: RunningDaemon, registry: RegistryServer, tiny_model: Path
) -> None:
    daemon.runner("ctl", "pull", name_of(registry))
    digest = hashlib.sha256(tiny_model.read_bytes()).hexdigest()
    blob = Path(daemon.environment["RUNNER_STORE"]) / "blobs" / "sha256" / digest
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0xFF
    blob.chmod(0o600)
    blob.write_bytes(content)
    blob.chmod(0o400)
    found = daemon.runner("ctl", "verify", check=False)
    assert found.returncode == 1
    assert found.stdout == f"sha256:{digest} of {name_of(registry)}: it has other bytes\n"
    assert f"runner ctl repair {name_of(registry)}" in found.stderr
    assert f"repaired {name_of(registry)} (" in daemon.runner("ctl", "repair", name_of(registry)).stderr
    assert "all is sound" in daemon.runner("ctl", "verify").stderr
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == digest


class Stalling:
    """The first range of the weights is sent by half, and then no more until `go_on`."""

    def __init__(self, registry: RegistryServer, digest: str) -> None:
        self._registry = registry
        self._path = f"/v2/team/tiny/blobs/{digest}"
        self._has_stalled = threading.Event()
        self.ranges: list[str | None] = []

    def __call__(self, request: Request) -> Reply | Talk | None:
        if request.path != self._path:
            return None
        self.ranges.append(request.headers.get("range"))
        if self._has_stalled.is_set():
            return None
        self._has_stalled.set()
        content = self._registry.blobs[self._path.rpartition("/")[2]]

        def talk(connection: Any) -> None:
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n"
            if request.headers.get("range"):
                head = (
                    f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(content)}\r\n"
                    f"Content-Range: bytes 0-{len(content) - 1}/{len(content)}\r\n\r\n"
                )
            connection.sendall(head.encode() + content[: len(content) // 2])
            wait_for_close(connection)

        return talk


def test_ctrl_c_in_a_pull_keeps_what_was_fetched(
    daemon: RunningDaemon, registry: RegistryServer, tiny_model: Path, tmp_path: Path
) -> None:
    content = tiny_model.read_bytes()
    stalling = Stalling(registry, f"sha256:{hashlib.sha256(content).hexdigest()}")
    registry.before = stalling
    command = [sys.executable, "-m", "runner", "ctl", "pull", name_of(registry)]
    with on_terminal(command, daemon.environment, cwd=tmp_path, columns=140) as terminal:
        terminal.wait_for("pulling ")
        terminal.wait_for("KiB")
        [transfer] = json.loads(daemon.runner("ctl", "transfers", "--json").stdout)
        assert transfer["reference"] == name_of(registry)
        terminal.interrupt()
        terminal.wait_for("interrupted at ")
        terminal.wait_for("goes on from there")
        assert terminal.wait_for_end() in (130, -2)
    while json.loads(daemon.runner("ctl", "transfers", "--json").stdout):
        pass  # until the daemon has seen that nobody waits
    done = daemon.runner("ctl", "pull", name_of(registry))
    assert " of " in done.stderr.splitlines()[-1]
    assert stalling.ranges[-1] is not None and not stalling.ranges[-1].startswith("bytes=0-")


# as Docker Model Runner


def native(daemon: RunningDaemon, method: str, path: str, body: Any = None, **headers: str) -> Any:
    request = urllib.request.Request(
        f"{daemon.url}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers=headers,
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read()


def test_the_native_endpoints_do_what_they_say(daemon: RunningDaemon, registry: RegistryServer) -> None:
    name = name_of(registry)
    lines = [
        json.loads(line)
        for line in native(
            daemon, "POST", "/models/create", {"from": name}, Accept="application/json"
        ).splitlines()
    ]
    assert lines[-1]["message"] == "Model pulled successfully"
    [model] = json.loads(native(daemon, "GET", "/models"))
    assert (model["tags"], model["config"]["architecture"]) == ([name], "llama")
    assert json.loads(native(daemon, "GET", "/models/tiny"))["id"] == model["id"]
    assert json.loads(native(daemon, "GET", f"/models/{name}?remote=true"))["id"] == model["id"]
    native(daemon, "POST", f"/models/{name}/tag?repo=acme/tiny&tag=v1")
    native(daemon, "POST", f"/models/{name}/repackage", {"target": "acme/tiny:4k", "context_size": 4096})
    archive = native(daemon, "GET", "/models/acme/tiny:4k/export")
    native(daemon, "DELETE", "/models/acme/tiny:4k")
    assert len(json.loads(native(daemon, "GET", "/models"))) == 1
    request = urllib.request.Request(f"{daemon.url}/models/load", data=archive, method="POST")
    with urllib.request.urlopen(request, timeout=60) as response:
        assert json.loads(response.read())["message"] == "Model loaded successfully"
    assert len(json.loads(native(daemon, "GET", "/models"))) == 2
    lines = native(daemon, "POST", f"/models/{name}/push", {}).decode().splitlines()
    assert "Model pushed successfully" in lines[-1]
    body = {"model": "acme/tiny:v1", "messages": [{"role": "user", "content": "hello"}]}
    assert daemon.post("/v1/chat/completions", body)["choices"]
    assert native(daemon, "DELETE", "/models/purge") == b""
    assert json.loads(native(daemon, "GET", "/models")) == []
