"""Measurements on disk: found again, bounded, and no trouble when the file is."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.domain.engine import DeviceBuffers, EngineOptions, EngineSizes
from runner.memory.footprint import Basis
from runner.telemetry.measurements import Measurement, MeasurementKey, Measurements, options_text

OPTIONS = EngineOptions(context_size=8192, n_cells=16_384)
KEY = MeasurementKey.of("sha256:ab", OPTIONS, "engine 1 on x")
HOST = DeviceBuffers(device="cpu", weights_bytes=1000, repacked_bytes=1, kv_cache_bytes=20, compute_bytes=3)
MEASURED = Measurement(
    sizes=EngineSizes(devices=(HOST, DeviceBuffers(device="CUDA0", weights_bytes=5)), process_bytes=7),
    basis=Basis.PROBE,
    learned_bytes=9,
)


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


class Bench:
    def __init__(self, path: Path, rows_max: int = 100) -> None:
        self.path = path
        self.told: list[str] = []
        self.measurements = Measurements(path, rows_max=rows_max, now_s=Clock(), report=self.told.append)

    def execute(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        database = sqlite3.connect(self.path)
        try:
            with database:
                return database.execute(statement, parameters).fetchall()
        finally:
            database.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "measurements.sqlite3")


def test_what_was_remembered_is_found_by_others(bench: Bench) -> None:
    bench.measurements.remember(KEY, MEASURED)
    assert Measurements(bench.path).find(KEY) == MEASURED
    assert bench.told == []


def test_nothing_is_found_and_no_file_made_before_that(bench: Bench) -> None:
    assert bench.measurements.find(KEY) is None
    assert not bench.path.exists()


@pytest.mark.parametrize(
    "other",
    [
        attrs.evolve(KEY, weights="sha256:cd"),
        attrs.evolve(KEY, engine="engine 2 on x"),
        MeasurementKey.of("sha256:ab", attrs.evolve(OPTIONS, n_cells=8192), KEY.engine),
    ],
)
def test_other_weights_options_and_engines_are_other_measurements(
    bench: Bench, other: MeasurementKey
) -> None:
    bench.measurements.remember(KEY, MEASURED)
    assert bench.measurements.find(other) is None


def test_every_option_that_decides_sizes_is_in_the_key() -> None:
    changes = {
        "context_size": 512,
        "n_cells": 512,
        "max_sequences": 3,
        "prefill_chunk": 17,
        "key_type": "q8_0",
        "value_type": "q4_0",
        "flash_attention": "on",
    }
    texts = {options_text(attrs.evolve(OPTIONS, **{name: value})) for name, value in changes.items()}
    assert len(texts | {options_text(OPTIONS)}) == len(changes) + 1
    for name in ("n_threads", "host_cells"):
        assert options_text(attrs.evolve(OPTIONS, **{name: 7})) == options_text(OPTIONS)


def test_the_later_measurement_of_a_key_counts(bench: Bench) -> None:
    bench.measurements.remember(KEY, MEASURED)
    later = attrs.evolve(MEASURED, basis=Basis.LOAD, learned_bytes=10)
    bench.measurements.remember(KEY, later)
    assert bench.measurements.find(KEY) == later


def keys(count: int) -> list[MeasurementKey]:
    return [attrs.evolve(KEY, weights=f"sha256:{index}") for index in range(count)]


@pytest.mark.parametrize(("count", "left"), [(2, 2), (3, 3), (4, 3)])
def test_O08_rows_beyond_the_limit_give_way(tmp_path: Path, count: int, left: int) -> None:
    bench = Bench(tmp_path / "m", rows_max=3)
    for key in keys(count):
        bench.measurements.remember(key, MEASURED)
    assert bench.execute("SELECT count(*) FROM measurements") == [(left,)]
    assert bench.measurements.find(keys(count)[-1]) == MEASURED


def test_O08_those_used_longest_ago_give_way_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "m", rows_max=2)
    first, second, third = keys(3)
    bench.measurements.remember(first, MEASURED)
    bench.measurements.remember(second, MEASURED)
    assert bench.measurements.find(first) == MEASURED
    bench.measurements.remember(third, MEASURED)
    found = [bench.measurements.find(key) is not None for key in (first, second, third)]
    assert found == [True, False, True]


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be looked at" * 100, b"SQLite format 3\0x"]
)
def test_a_damaged_file_is_begun_anew(bench: Bench, content: bytes) -> None:
    bench.path.write_bytes(content)
    assert bench.measurements.find(KEY) is None
    bench.measurements.remember(KEY, MEASURED)
    assert bench.measurements.find(KEY) == MEASURED
    assert len(bench.told) == 1


def test_a_file_cut_anywhere_never_raises_and_can_be_used_again(bench: Bench) -> None:
    for key in keys(40):
        bench.measurements.remember(key, MEASURED)
    whole = bench.path.read_bytes()
    for size in range(0, len(whole), 997):
        bench.path.write_bytes(whole[:size])
        bench.measurements.find(KEY)
        bench.measurements.remember(KEY, MEASURED)
        assert bench.measurements.find(KEY) == MEASURED


def test_a_file_of_another_version_is_begun_anew(bench: Bench) -> None:
    bench.execute("CREATE TABLE measurements (weights TEXT)")
    bench.execute("PRAGMA user_version = 99")
    assert bench.measurements.find(KEY) is None
    bench.measurements.remember(KEY, MEASURED)
    assert bench.measurements.find(KEY) == MEASURED
    assert bench.told == []


DOCUMENT = json.loads(json.dumps(attrs.asdict(MEASURED.sizes)))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("sizes", "not JSON"),
        ("sizes", "[]"),
        ("sizes", "{}"),
        ("sizes", "[" * 5000),
        ("sizes", 5),
        ("sizes", b"x"),
        ("sizes", "1" * 20_000),
        ("sizes", json.dumps({**DOCUMENT, "process_bytes": -1})),
        ("sizes", json.dumps({**DOCUMENT, "process_bytes": True})),
        ("sizes", json.dumps({**DOCUMENT, "process_bytes": 2**50 + 1})),
        ("sizes", json.dumps({**DOCUMENT, "devices": ["cpu"]})),
        ("sizes", json.dumps({**DOCUMENT, "devices": [{"device": 5}]})),
        ("sizes", json.dumps({**DOCUMENT, "devices": [{"device": "cpu"}] * 2})),
        ("sizes", json.dumps({**DOCUMENT, "devices": [{"device": "cpu", "colour": 5}]})),
        ("sizes", json.dumps({**DOCUMENT, "devices": [{"device": str(index)} for index in range(65)]})),
        ("basis", "GUESS"),
        ("learned_bytes", -1),
        ("learned_bytes", "much"),
    ],
)
def test_a_row_that_cannot_be_true_is_forgotten(bench: Bench, column: str, value: object) -> None:
    bench.measurements.remember(KEY, MEASURED)
    bench.execute(f"UPDATE measurements SET {column} = ?", value)
    assert bench.measurements.find(KEY) is None
    assert bench.execute("SELECT count(*) FROM measurements") == [(0,)]
    assert len(bench.told) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(sizes=st.text(max_size=80), basis=st.text(max_size=9), learned=st.integers(-(2**63), 2**63 - 1))
def test_no_row_is_too_strange(bench: Bench, sizes: str, basis: str, learned: int) -> None:
    bench.measurements.remember(KEY, MEASURED)
    statement = "UPDATE measurements SET sizes = ?, basis = ?, learned_bytes = ?"
    bench.execute(
        statement,
        sizes.encode("utf-8", "replace").decode(),
        basis.encode("utf-8", "replace").decode(),
        learned,
    )
    bench.measurements.find(KEY)


def test_a_place_that_cannot_be_written_costs_a_word_and_nothing_else(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "no such directory" / "m")
    bench.measurements.remember(KEY, MEASURED)
    assert bench.measurements.find(KEY) is None
    assert len(bench.told) == 1
    assert "cannot be kept" in bench.told[0]


def test_a_file_that_somebody_holds_is_given_up_after_a_while(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.telemetry.measurements._BUSY_TIMEOUT_S", 0.01)
    bench.measurements.remember(KEY, MEASURED)
    holder = sqlite3.connect(bench.path, isolation_level=None)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        assert bench.measurements.find(KEY) is None
        assert len(bench.told) == 1
        holder.execute("COMMIT")
    finally:
        holder.close()
    assert bench.measurements.find(KEY) == MEASURED


_WRITER = """
import sys
from pathlib import Path
from tests.runner.telemetry.test_measurements import KEY, MEASURED, Measurements, attrs
measurements = Measurements(Path(sys.argv[1]))
for index in range(10_000):
    measurements.remember(attrs.evolve(KEY, weights=f"sha256:{index}"), MEASURED)
    print(index, flush=True)
"""


def test_a_crash_while_writing_loses_nothing_that_was_told(bench: Bench) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(bench.path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    with writer:
        assert writer.stdout is not None
        for _ in range(5):
            told = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
    for index in range(told + 1):
        assert bench.measurements.find(attrs.evolve(KEY, weights=f"sha256:{index}")) == MEASURED
    assert bench.told == []
