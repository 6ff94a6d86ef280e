"""Models against real registries on loopback, with other people's tools beside ours: skopeo and oras.

What one tool pushes, the others pull with the same digests: plain, over TLS with a private authority, with
passwords, and with tokens of a server beside the registry.
"""

from __future__ import annotations

import base64
import io
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import oras.layout
import oras.provider
import pytest
import trustme

from runner.oci.manifest import Descriptor
from runner.oci.reference import Reference
from tests.support.daemon import RunningDaemon, running_daemon
from tests.support.docker_registry import (
    PASSWORD,
    USERNAME,
    RealRegistry,
    TokenServer,
    docker_registry,
    token_server,
)
from tests.support.registry_client import read_all, registry_client

KINDS = ("plain", "tls", "password", "token", "tls-token")
NAME = "docker.io/ai/one:latest"


@attrs.frozen(kw_only=True)
class Setting:
    """Registries of every kind, a daemon with a model that may talk to all of them, and one without any."""

    registries: dict[str, RealRegistry]
    tokens: TokenServer
    certificates: Path
    full: RunningDaemon
    empty: RunningDaemon

    def skopeo(self, *arguments: str) -> bytes:
        done = subprocess.run(
            ["skopeo", "--insecure-policy", *arguments], capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def access(self, kind: str, prefix: str = "") -> list[str]:
        """Options of skopeo for a registry of this kind; `prefix` is `src-` or `dest-` for a copy."""
        is_tls = kind.startswith("tls")
        trust = [f"--{prefix}cert-dir", str(self.certificates)] if is_tls else [f"--{prefix}tls-verify=false"]
        has_login = kind in ("password", "token", "tls-token")
        return [*trust, f"--{prefix}creds", f"{USERNAME}:{PASSWORD}"] if has_login else trust

    def raw(self, kind: str, name: str) -> bytes:
        """The manifest as a registry has it."""
        where = f"docker://{self.registries[kind].host}/{name}"
        return self.skopeo("inspect", "--raw", *self.access(kind), where)

    def model_id(self, daemon: RunningDaemon, name: str) -> str:
        inspected = json.loads(daemon.runner("ctl", "inspect", name, "--json").stdout)
        return str(inspected["model"]["id"])


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Setting]:
    if shutil.which("skopeo") is None:
        pytest.fail("skopeo is missing; install the package `skopeo` (apt-get install skopeo)")
    root = tmp_path_factory.mktemp("registries")
    authority = trustme.CA()
    certificates = root / "certificates"
    certificates.mkdir()
    ca_file = certificates / "ca.crt"
    ca_file.write_bytes(authority.cert_pem.bytes())
    certificate = authority.issue_cert("127.0.0.1")
    with (
        token_server() as tokens,
        token_server(certificate) as tls_tokens,
        docker_registry(root / "plain") as plain,
        docker_registry(root / "tls", certificate=certificate) as tls,
        docker_registry(root / "password", needs_password=True) as password,
        docker_registry(root / "token", tokens=tokens) as token,
        docker_registry(root / "tls-token", certificate=certificate, tokens=tls_tokens) as tls_token,
    ):
        registries = dict(zip(KINDS, (plain, tls, password, token, tls_token), strict=True))
        token_hosts = [urlsplit(each.url).netloc for each in (tokens, tls_tokens)]
        settings = {
            "DOCKER_CONFIG": str(root / "docker"),
            "RUNNER_REGISTRY_CA_FILES": ",".join(
                f"{host}={ca_file}" for host in (tls.host, tls_token.host, token_hosts[1])
            ),
            "RUNNER_PRIVATE_REGISTRIES": ",".join(token_hosts),
            "RUNNER_REGISTRY_MIRRORS": f"docker.io={plain.host}",
        }
        _log_in(root / "docker", password.host, token.host, tls_token.host)
        (root / "full").mkdir()
        (root / "empty").mkdir()
        with (
            running_daemon(root / "full", **settings) as full,
            running_daemon(root / "empty", **settings) as empty,
        ):
            license_file = root / "LICENSE"
            license_file.write_text("Do as you like.\n")
            full.package("one", tiny_model, "--license", str(license_file))
            yield Setting(
                registries=registries, tokens=tokens, certificates=certificates, full=full, empty=empty
            )


def _log_in(directory: Path, *hosts: str) -> None:
    secret = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    directory.mkdir()
    file = directory / "config.json"
    file.write_text(json.dumps({"auths": {host: {"auth": secret} for host in hosts}}))
    file.chmod(0o600)


def pull(daemon: RunningDaemon, name: str) -> dict[str, Any]:
    done = daemon.runner("ctl", "pull", name, "--json")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["type"] == "success", done.stdout
    return result


def push(daemon: RunningDaemon, name: str, target: str) -> dict[str, Any]:
    done = daemon.runner("ctl", "push", name, target, "--json")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["type"] == "success", done.stdout
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_push_and_skopeo_copies_elsewhere_is_pulled_with_the_same_digests(
    setting: Setting, kind: str
) -> None:
    source = setting.registries[kind]
    elsewhere = "plain" if kind != "plain" else "password"
    target = setting.registries[elsewhere]
    model_id = setting.model_id(setting.full, "one")
    pushed = push(setting.full, "one", f"{source.host}/ours/from-{kind}:v1")
    assert pushed["model_id"] == model_id
    setting.skopeo(
        "copy",
        *setting.access(kind, "src-"),
        *setting.access(elsewhere, "dest-"),
        f"docker://{source.host}/ours/from-{kind}:v1",
        f"docker://{target.host}/copied/from-{kind}:v1",
    )
    pulled = pull(setting.empty, f"{target.host}/copied/from-{kind}:v1")
    assert pulled["model_id"] == model_id
    name = f"{target.host}/copied/from-{kind}:v1"
    assert _layers(setting.empty, name) == _layers(setting.full, "one")
    setting.empty.runner("ctl", "rm", name)


@pytest.mark.parametrize("kind", KINDS)
def test_what_skopeo_copies_out_of_our_store_is_pulled_with_the_same_digests(
    setting: Setting, kind: str
) -> None:
    registry = setting.registries[kind]
    store = setting.full.environment["RUNNER_STORE"]
    name = f"theirs/into-{kind}:v1"
    setting.skopeo(
        "copy", *setting.access(kind, "dest-"), f"oci:{store}:{NAME}", f"docker://{registry.host}/{name}"
    )
    pulled = pull(setting.empty, f"{registry.host}/{name}")
    assert pulled["model_id"] == setting.model_id(setting.full, "one")
    assert not pulled["was_cached"]
    again = pull(setting.empty, f"{registry.host}/{name}")
    assert again["was_cached"]
    assert again["transferred_bytes"] == 0
    setting.empty.runner("ctl", "rm", f"{registry.host}/{name}")


def test_a_manifest_in_a_registry_has_the_bytes_that_we_have(setting: Setting) -> None:
    push(setting.full, "one", f"{setting.registries['plain'].host}/ours/bytes:v1")
    model_id = setting.model_id(setting.full, "one")
    blob = Path(setting.full.environment["RUNNER_STORE"]) / "blobs" / "sha256" / model_id.partition(":")[2]
    assert setting.raw("plain", "ours/bytes:v1") == blob.read_bytes()


def test_oras_reads_our_store_as_an_image_layout_and_pushes_from_it(setting: Setting) -> None:
    layout = oras.layout.NewLayout(setting.full.environment["RUNNER_STORE"])
    model_id = setting.model_id(setting.full, "one")
    assert layout.get_ordered_blobs(NAME)[-1] == model_id
    host = setting.registries["plain"].host
    provider = oras.provider.Registry(insecure=True)
    try:
        layout.push_to_registry(provider, f"{host}/by-oras/one:v1", tag=NAME)
    finally:
        provider.session.close()
    assert pull(setting.empty, f"{host}/by-oras/one:v1")["model_id"] == model_id
    setting.empty.runner("ctl", "rm", f"{host}/by-oras/one:v1")


def test_oras_pulls_what_we_pushed(setting: Setting, tmp_path: Path, tiny_model: Path) -> None:
    host = setting.registries["plain"].host
    push(setting.full, "one", f"{host}/for-oras/one:v1")
    provider = oras.provider.Registry(insecure=True)
    try:
        oras.layout.NewLayoutFromRegistry(str(tmp_path / "layout"), provider, f"{host}/for-oras/one:v1")
    finally:
        provider.session.close()
    found = oras.layout.NewLayout(str(tmp_path / "layout"))
    assert found.get_ordered_blobs()[-1] == setting.model_id(setting.full, "one")
    weights = found.digest_to_blob_path(found.get_ordered_blobs()[0])
    assert weights.read_bytes() == tiny_model.read_bytes()


def test_a_pull_by_digest_gives_no_tag(setting: Setting) -> None:
    host = setting.registries["plain"].host
    push(setting.full, "one", f"{host}/by-digest/one:v1")
    model_id = setting.model_id(setting.full, "one")
    pulled = pull(setting.empty, f"{host}/by-digest/one@{model_id}")
    assert pulled["model_id"] == model_id
    listed = json.loads(setting.empty.runner("ctl", "ls", "--json").stdout)
    assert [model["tags"] for model in listed if model["id"] == model_id] == [[]]
    setting.empty.runner("ctl", "rm", model_id)


def test_a_mirror_has_what_is_asked_of_docker_hub(setting: Setting) -> None:
    push(setting.full, "one", f"{setting.registries['plain'].host}/ai/mirrored:v1")
    pulled = pull(setting.empty, "mirrored:v1")
    assert pulled["model_id"] == setting.model_id(setting.full, "one")
    assert pulled["reference"] == "docker.io/ai/mirrored:v1"
    setting.empty.runner("ctl", "rm", "mirrored:v1")


def test_content_that_the_registry_has_is_not_sent_again(setting: Setting) -> None:
    host = setting.registries["plain"].host
    push(setting.full, "one", f"{host}/again/one:v1")
    again = push(setting.full, "one", f"{host}/again/one:v2")
    assert again["transferred_bytes"] == 0
    assert setting.raw("plain", "again/one:v1") == setting.raw("plain", "again/one:v2")


@pytest.mark.parametrize("kind", ["password", "token"])
def test_a_login_is_asked_for_tried_kept_used_and_forgotten(
    setting: Setting, kind: str, tmp_path: Path, tiny_model: Path
) -> None:
    host = setting.registries[kind].host
    login = ("ctl", "login", host, "--username", USERNAME, "--password-stdin")
    file = tmp_path / "docker" / "config.json"
    settings = {
        "DOCKER_CONFIG": str(file.parent),
        "RUNNER_PRIVATE_REGISTRIES": setting.tokens.url.removeprefix("http://"),
    }
    with running_daemon(tmp_path, **settings) as stranger:
        stranger.package("one", tiny_model)

        def pushed(name: str) -> Any:
            return stranger.runner("ctl", "push", "one", f"{host}/login/{name}:v1", check=False)

        refused = pushed("before")
        assert refused.returncode != 0
        assert f"runner ctl login {host}" in refused.stderr
        wrong = stranger.runner(*login, stdin="another password\n", check=False)
        assert wrong.returncode != 0
        assert not file.exists()
        stranger.runner(*login, stdin=f"{PASSWORD}\n")
        assert file.stat().st_mode & 0o777 == 0o600
        assert pushed("after").returncode == 0
        stranger.runner("ctl", "logout", host)
        assert pushed("afterwards").returncode != 0


def test_a_registry_of_an_unknown_authority_is_not_talked_to(setting: Setting, tmp_path: Path) -> None:
    host = setting.registries["tls"].host
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().cert_pem.bytes())
    with running_daemon(tmp_path, RUNNER_REGISTRY_CA_FILES=f"{host}={other}") as careful:
        done = careful.runner("ctl", "pull", f"{host}/ours/from-tls:v1", check=False)
    assert done.returncode != 0
    assert "certificate" in done.stderr
    assert host in done.stderr


def test_a_registry_on_this_machine_that_speaks_tls_says_what_to_set(
    setting: Setting, tmp_path: Path
) -> None:
    host = setting.registries["tls"].host
    with running_daemon(tmp_path) as plain:
        done = plain.runner("ctl", "pull", f"{host}/ours/from-tls:v1", check=False)
    assert done.returncode != 0
    assert "registry_ca_files" in done.stderr


def test_a_real_registry_takes_an_upload_in_pieces_and_gives_ranges_of_it(setting: Setting) -> None:
    content = random.Random(1).randbytes(3_000_001)
    layer = Descriptor.of(content, "application/octet-stream")
    reference = Reference.parse(f"{setting.registries['plain'].host}/in/pieces:v1")
    sent: list[int] = []

    def source(offset: int) -> io.BytesIO:
        file = io.BytesIO(content)
        file.seek(offset)
        return file

    with registry_client() as client:
        client.upload_blob(reference, layer, source, on_progress=sent.append, chunk_bytes=1 << 20)
        assert client.has_blob(reference, layer)
        assert read_all(client, reference, layer.digest, len(content)) == content
        middle = read_all(client, reference, layer.digest, len(content), start=999_999, end=2_000_001)
    assert middle == content[999_999:2_000_001]
    assert sent == sorted(sent)
    assert sent[-1] == len(content)


def _layers(daemon: RunningDaemon, name: str) -> list[Any]:
    found: list[Any] = json.loads(daemon.runner("ctl", "inspect", name, "--json").stdout)["layers"]
    return found
