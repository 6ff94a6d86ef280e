"""What models were measured to take, kept in one small SQLite file: answers of probes, and what loads taught.

A cache: everything in it can be measured again, so a file that is damaged is thrown away, and one that cannot
be written costs no more than time. Rows are read as strictly as messages are. Bounded; the rows used longest
ago give way. Every call opens the file and closes it, so that any thread may call, and a crash between two
calls leaves nothing open; SQLite's journal settles what is cut off within one.

Imports the domain and `runner.memory`. Calls wait for the disk: call from a thread. Read on in
`actors/footprints.py`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from runner.domain.engine import DeviceBuffers, EngineOptions, EngineSizes
from runner.memory.footprint import Basis

ROWS_MAX: Final = 2000
"""About a megabyte; each model with each set of options is a row."""

_VERSION: Final = 2
_BUSY_TIMEOUT_S: Final = 2.0
_TEXT_MAX: Final = 16 * 1024
_BYTES_MAX: Final = 2**50
_DEVICES_MAX: Final = 64
_NOT_A_DATABASE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_SCHEMA: Final = """
CREATE TABLE measurements (
    weights       TEXT    NOT NULL,
    options       TEXT    NOT NULL,
    engine        TEXT    NOT NULL,
    sizes         TEXT    NOT NULL,
    basis         TEXT    NOT NULL,
    learned_bytes INTEGER NOT NULL,
    used_at_s     INTEGER NOT NULL,
    PRIMARY KEY (weights, options, engine)
) WITHOUT ROWID
"""


@attrs.frozen(kw_only=True)
class MeasurementKey:
    """What sizes depend on. `weights` is the digest of the file, `engine` names build and machine."""

    weights: str
    options: str
    engine: str

    @classmethod
    def of(cls, weights: str, options: EngineOptions, engine: str) -> MeasurementKey:
        return cls(weights=weights, options=options_text(options), engine=engine)


@attrs.frozen(kw_only=True)
class Measurement:
    """What is known: the engine's sizes, who said so, and by how much loads were seen to exceed them."""

    sizes: EngineSizes
    basis: Basis
    learned_bytes: int = 0


def options_text(options: EngineOptions) -> str:
    """The options that decide sizes. Threads do not: a worker's share of the cores changes at any time. Nor
    do host cells, whose bytes follow from the sizes."""
    return (
        f"context={options.context_size} cells={options.n_cells} sequences={options.max_sequences} "
        f"retained={options.max_retained} chunk={options.prefill_chunk} "
        f"keys={options.key_type.value} values={options.value_type.value} "
        f"attention={options.flash_attention.value}"
    )


class Measurements:
    """The file at `path`, made when it is first written. No method raises for what is wrong with it: `report`
    hears of that, as a sentence."""

    def __init__(
        self,
        path: Path,
        *,
        rows_max: int = ROWS_MAX,
        now_s: Callable[[], float] = time.time,
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._path = path
        self._rows_max = rows_max
        self._now_s = now_s
        self._report = report

    def find(self, key: MeasurementKey) -> Measurement | None:
        """Marks the row as used."""
        if not self._path.exists():
            return None
        return self._attempt(lambda database: self._find(database, key))

    def remember(self, key: MeasurementKey, measurement: Measurement) -> None:
        """Replaces what was known for the key; durable when it returns."""
        self._attempt(lambda database: self._remember(database, key, measurement))

    def _find(self, database: sqlite3.Connection, key: MeasurementKey) -> Measurement | None:
        found = database.execute(
            "SELECT sizes, basis, learned_bytes FROM measurements"
            " WHERE weights = ? AND options = ? AND engine = ?",
            attrs.astuple(key),
        ).fetchone()
        if found is None:
            return None
        measurement = _read(*found)
        if measurement is None:
            self._report("a measurement on disk is damaged; it will be made again")
            self._execute_for(database, key, "DELETE FROM measurements")
        else:
            self._execute_for(database, key, "UPDATE measurements SET used_at_s = ?", int(self._now_s()))
        return measurement

    @staticmethod
    def _execute_for(
        database: sqlite3.Connection, key: MeasurementKey, statement: str, *parameters: int
    ) -> None:
        where = " WHERE weights = ? AND options = ? AND engine = ?"
        database.execute(statement + where, (*parameters, *attrs.astuple(key)))

    def _remember(self, database: sqlite3.Connection, key: MeasurementKey, measurement: Measurement) -> None:
        values = (*attrs.astuple(key), *_row(measurement), int(self._now_s()))
        database.execute("INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        database.execute(
            "DELETE FROM measurements WHERE (weights, options, engine) IN (SELECT weights, options, engine"
            " FROM measurements ORDER BY used_at_s DESC, weights, options, engine LIMIT -1 OFFSET ?)",
            (self._rows_max,),
        )

    def _attempt(self, use: Callable[[sqlite3.Connection], Measurement | None]) -> Measurement | None:
        """`use` within a transaction; a second time on an empty file, when this one is none of ours."""
        for is_second in (False, True):
            try:
                with self._transaction() as database:
                    return use(database)
            except (sqlite3.Error, OSError) as error:
                if is_second or getattr(error, "sqlite_errorcode", None) not in _NOT_A_DATABASE:
                    self._report(f"measurements cannot be kept: {error}")
                    return None
                self._report("the file of measurements is damaged; it is begun anew")
                self._remove()
        raise AssertionError("the second attempt returns")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        with closing(database):
            database.execute("BEGIN IMMEDIATE")
            self._prepare(database)
            yield database
            database.execute("COMMIT")

    def _prepare(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != _VERSION:  # new, or of another version of this program
            database.execute("DROP TABLE IF EXISTS measurements")
            database.execute(_SCHEMA)
            database.execute(f"PRAGMA user_version = {_VERSION}")

    def _remove(self) -> None:
        for path in (self._path, self._path.with_name(self._path.name + "-journal")):
            path.unlink(missing_ok=True)


def _row(measurement: Measurement) -> tuple[str, str, int]:
    return json.dumps(attrs.asdict(measurement.sizes)), measurement.basis.name, measurement.learned_bytes


def _read(sizes: Any, basis: Any, learned_bytes: Any) -> Measurement | None:
    """None for what `_row` cannot have written."""
    try:
        if len(sizes) > _TEXT_MAX:
            return None
        document = json.loads(sizes)
        return Measurement(
            sizes=EngineSizes(
                devices=_read_devices(document["devices"]),
                process_bytes=_size(document["process_bytes"]),
                annex=_read_devices(document["annex"]),
            ),
            basis=Basis[basis],
            learned_bytes=_size(learned_bytes),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _read_devices(items: list[dict[str, Any]]) -> tuple[DeviceBuffers, ...]:
    devices = tuple(map(_read_buffers, items))
    if len({buffers.device for buffers in devices}) < len(devices) or len(devices) > _DEVICES_MAX:
        raise ValueError
    return devices


def _read_buffers(item: dict[str, Any]) -> DeviceBuffers:
    device = item.pop("device")
    if type(device) is not str:
        raise TypeError
    return DeviceBuffers(device=device, **{name: _size(value) for name, value in item.items()})


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _BYTES_MAX:
        raise ValueError
    return value
