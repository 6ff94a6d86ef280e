"""A real daemon with the real engine: a model is measured when it is packaged, and its load reserves that."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import attrs

from runner.domain.engine import DeviceBuffers, EngineSizes
from runner.memory.footprint import OVERHEAD_BYTES, exact
from scripts.tiny_gguf import TinyModel, write_tiny_gguf
from tests.support.daemon import RunningDaemon, running_daemon

_PATIENCE_S = 60.0


def measured(daemon: RunningDaemon) -> list[EngineSizes]:
    """What the daemon has remembered, once it has remembered something."""
    path = daemon.directory / "store-measurements.sqlite3"
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        if path.exists():
            database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            try:
                rows = database.execute("SELECT sizes FROM measurements").fetchall()
            except sqlite3.OperationalError:  # it is being made
                rows = []
            finally:
                database.close()
            if rows:
                return [_sizes(json.loads(text)) for (text,) in rows]
        time.sleep(0.05)
    raise AssertionError(f"nothing was measured:\n{daemon.log}")


def _sizes(document: dict) -> EngineSizes:
    devices, annex = (
        tuple(DeviceBuffers(**item) for item in document[name]) for name in ("devices", "annex")
    )
    return EngineSizes(devices=devices, process_bytes=document["process_bytes"], annex=annex)


def test_O01_a_packaged_model_is_measured_and_its_load_reserves_just_that(tmp_path: Path) -> None:
    model = TinyModel(n_embedding=512, n_feed_forward=1024, context_length=2048, is_quantized=True)
    file = write_tiny_gguf(tmp_path / "tiny.gguf", model)
    with running_daemon(tmp_path, RUNNER_ENGINE="llama") as daemon:
        daemon.package("tiny", file)
        (sizes,) = measured(daemon)
        status = daemon.post("/control/v1/start", {"model": "tiny"})
        reserved_bytes = exact(sizes, 2048, 2048).total_bytes
        assert status["reserved_bytes"] == reserved_bytes
        assert status["reserved_bytes"] < OVERHEAD_BYTES  # which the header alone would add
        assert (status["context_size"], status["n_cells"], status["host_cells"]) == (2048, 2048, 2048)
        assert attrs.asdict(sizes.devices[0])["kv_cache_bytes"] == 2048 * 2 * 2 * (512 // 4) * 2 * 2
        daemon.post("/v1/embeddings", {"model": "tiny", "input": "hello"})
        (row,) = daemon.get("/control/v1/ps")["workers"]
        assert row["reserved_bytes"] == reserved_bytes + sizes.annex[0].total_bytes
        assert sizes.annex[0].kv_cache_bytes > 0
        assert "could not be measured" not in daemon.log
        assert "learned what" not in daemon.log
