"""Pulls by a real daemon from a real registry: shared by many, left by some, and cut off by a kill."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from runner.oci.digest import Digest
from runner.store.journal import parse_journal
from tests.support.daemon import RunningDaemon, running_daemon
from tests.support.docker_registry import RealRegistry, docker_registry
from tests.support.gated_proxy import GatedProxy, gated_proxy
from tests.support.models import tiny_gguf

MIB = 1 << 20
SIZE_BYTES = 40 * MIB
NAME = "ai/large:1"


@attrs.frozen
class Stock:
    """A registry that has one model of SIZE_BYTES and a little more."""

    registry: RealRegistry
    model_id: str
    weights_bytes: int


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    root = tmp_path_factory.mktemp("stock")
    weights = root / "model.gguf"
    weights.write_bytes(tiny_gguf() + os.urandom(SIZE_BYTES))
    with docker_registry(root / "registry") as registry:
        with running_daemon(root) as daemon:
            model_id = daemon.package("large:1", weights)["id"]
            daemon.runner("ctl", "push", "large:1", f"{registry.host}/{NAME}")
        yield Stock(registry, model_id, weights.stat().st_size)


@pytest.fixture
def proxy(stock: Stock) -> Iterator[GatedProxy]:
    with gated_proxy(stock.registry.host) as running:
        yield running


class Pull:
    """One client that pulls, in a thread of its own; `lines` are what it was told."""

    def __init__(self, daemon: RunningDaemon, reference: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=120)
        self._body = json.dumps({"reference": reference})
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            headers = {"Content-Type": "application/json"}
            self._connection.request("POST", "/control/v1/pull", self._body, headers)
            with self._connection.getresponse() as response:
                for line in response:
                    self.lines.append(json.loads(line))
        except (OSError, http.client.HTTPException, ValueError):  # it left, or the daemon was killed
            pass
        finally:
            self._connection.close()

    def leave(self) -> None:
        """Hang up."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(2)
        self._thread.join()

    def result(self) -> dict[str, Any]:
        """The last line, once all have come."""
        self._thread.join()
        assert self.lines, "the daemon said nothing"
        return self.lines[-1]


def transfers(daemon: RunningDaemon) -> Any:
    return daemon.get("/control/v1/transfers")


def wait_for_waiters(daemon: RunningDaemon, number: int) -> None:
    for _ in range(2000):
        if [each["waiters"] for each in transfers(daemon)] == [number]:
            return
    raise AssertionError(transfers(daemon))


def wait_until_journalled(daemon: RunningDaemon, store: Path) -> int:
    """Until all bytes that have come would survive a kill; how many those are."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        (layer,) = transfers(daemon)[0]["progress"]["layers"]
        (path,) = (store / "partial").glob("*.journal")
        journal = parse_journal(path.read_bytes(), Digest.parse(layer["digest"]), layer["size_bytes"])
        if journal is not None and 0 < layer["done_bytes"] == journal.ranges.size_bytes():
            return journal.ranges.size_bytes()
    raise AssertionError("what had come was never journalled")


def test_S21_twenty_pulls_at_once_download_a_model_once(
    tmp_path: Path, stock: Stock, proxy: GatedProxy
) -> None:
    proxy.limit(4 * MIB)
    with running_daemon(tmp_path) as daemon:
        pulls = [Pull(daemon, f"{proxy.netloc}/{NAME}") for _ in range(20)]
        wait_for_waiters(daemon, 20)
        proxy.limit()
        results = [pull.result() for pull in pulls]
        assert {(each["type"], each.get("model_id")) for each in results} == {("success", stock.model_id)}
        assert proxy.passed_bytes < SIZE_BYTES + MIB
        assert daemon.get("/control/v1/models")


def test_S21_when_the_first_caller_leaves_the_others_get_the_model(
    tmp_path: Path, stock: Stock, proxy: GatedProxy
) -> None:
    proxy.limit(8 * MIB)
    with running_daemon(tmp_path) as daemon:
        first = Pull(daemon, f"{proxy.netloc}/{NAME}")
        proxy.wait_until_full()
        others = [Pull(daemon, f"{proxy.netloc}/{NAME}") for _ in range(3)]
        wait_for_waiters(daemon, 4)
        first.leave()
        wait_for_waiters(daemon, 3)
        proxy.limit()
        assert [other.result()["type"] for other in others] == ["success"] * 3
        assert proxy.passed_bytes < SIZE_BYTES - 4 * MIB


def test_S18_a_pull_cut_off_by_a_kill_fetches_only_the_rest(
    tmp_path: Path, stock: Stock, proxy: GatedProxy
) -> None:
    proxy.limit(24 * MIB)
    with running_daemon(tmp_path) as daemon:
        pull = Pull(daemon, f"{proxy.netloc}/{NAME}")
        proxy.wait_until_full()
        kept_bytes = wait_until_journalled(daemon, tmp_path / "store")
        daemon.process.send_signal(signal.SIGKILL)
        daemon.wait_for_end()
        pull.leave()
    with running_daemon(tmp_path) as daemon:
        assert daemon.get("/control/v1/models") == []
        proxy.limit()
        result = Pull(daemon, f"{proxy.netloc}/{NAME}").result()
        assert (result["type"], result["model_id"]) == ("success", stock.model_id)
        assert kept_bytes > 0
        assert result["transferred_bytes"] == stock.weights_bytes - kept_bytes


def test_a_pull_that_all_have_left_is_resumed(tmp_path: Path, stock: Stock, proxy: GatedProxy) -> None:
    proxy.limit(16 * MIB)
    with running_daemon(tmp_path) as daemon:
        pull = Pull(daemon, f"{proxy.netloc}/{NAME}")
        proxy.wait_until_full()
        pull.leave()
        for _ in range(2000):
            if not transfers(daemon):
                break
        proxy.limit()
        result = Pull(daemon, f"{proxy.netloc}/{NAME}").result()
        assert result["type"] == "success"
        assert result["transferred_bytes"] <= SIZE_BYTES - 4 * MIB, "what sockets held then is not kept"
