"""Mutation fuzzer over the GGUF reader and the checks behind it.

    python -m tests.fuzz.gguf_reader --iterations 100000 --seed 7
    python -m tests.fuzz.gguf_reader --iterations 20000 --engine

Every mutant must give metadata or `InvalidModelFile`, within the time of G01, and metadata must be
sane. With `--engine`, each mutant that we accept is also loaded by the real engine in a child process, which
must survive: a death there is a check that is missing here. Mutants that fail are kept in a directory.

Half of the mutants are damaged bytes, half are well-formed files that state something else
(`gguf_models.py`).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from runner.errors import InvalidModelFile
from runner.gguf.metadata import GgufMetadata, read_metadata
from runner.gguf.reader import read_header
from scripts.tiny_gguf import TinyModel, write_tiny_gguf
from tests.fuzz.engine import EngineChild
from tests.fuzz.gguf_models import change, sound_models
from tests.support.gguf_writer import Tensor, boolean, f32, gguf_bytes, model_keys, strings, u64

TIME_LIMIT_S = 2.0
_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    64,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


@attrs.define
class Tally:
    accepted: int = 0
    refused: int = 0
    engine_refused: int = 0
    slowest_s: float = 0.0
    failures: list[str] = attrs.Factory(list)


def seeds() -> list[bytes]:
    """Sound files to begin with: one that the engine runs, and small ones that have every kind of value."""
    with tempfile.TemporaryDirectory() as directory:
        tiny = write_tiny_gguf(
            Path(directory) / "tiny.gguf", TinyModel(n_layers=1, n_embedding=32)
        ).read_bytes()
    extra = {
        "a.flag": boolean(1),
        "a.float": f32(1.5),
        "a.big": u64(2**40),
        "a.texts": strings(["x", "", "é"]),
    }
    return [
        tiny,
        gguf_bytes(model_keys(extra), [Tensor(), Tensor("output_norm.weight", (64,))]),
        gguf_bytes(model_keys(), [Tensor("a", (256, 2), 12), Tensor("b", (32, 1, 1, 3), 8)], alignment=32),
        gguf_bytes({}, []),
    ]


def mutate(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to four changes, most of them to the header, where every byte means something."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(_MUTATIONS)(chance, changed, others)
    return bytes(changed)


def _place(chance: random.Random, data: bytearray) -> int:
    return chance.randrange(min(len(data), chance.choice((64, 600, 12_000))) or 1)


def _flip_bit(chance: random.Random, data: bytearray, others: list[bytes]) -> None:
    if data:
        data[_place(chance, data)] ^= 1 << chance.randrange(8)


def _write_number(chance: random.Random, data: bytearray, others: list[bytes]) -> None:
    number = chance.choice((*_NUMBERS, len(data), chance.randrange(2**16)))
    code = chance.choice("BIQ")
    at = _place(chance, data)
    width = struct.calcsize(f"<{code}")
    data[at : at + width] = struct.pack(f"<{code}", number % 256**width)


def _remove(chance: random.Random, data: bytearray, others: list[bytes]) -> None:
    at = _place(chance, data)
    del data[at : at + chance.choice((1, 4, 8, 40))]


def _repeat(chance: random.Random, data: bytearray, others: list[bytes]) -> None:
    at = _place(chance, data)
    length = chance.choice((1, 4, 8, 60))
    data[at:at] = data[at : at + length]


def _overwrite_from_other(chance: random.Random, data: bytearray, others: list[bytes]) -> None:
    other = chance.choice(others)
    at, length = _place(chance, data), chance.choice((4, 16, 100))
    start = chance.randrange(len(other) or 1)
    data[at : at + length] = other[start : start + length]


def _change_letter(chance: random.Random, data: bytearray, others: list[bytes]) -> None:
    if data:
        data[_place(chance, data)] = chance.choice(b"\x00\x01\x06\x09\xff aZ<>\n")


def _cut(chance: random.Random, data: bytearray, others: list[bytes]) -> None:
    del data[_place(chance, data) :]


_MUTATIONS: tuple[Callable[[random.Random, bytearray, list[bytes]], None], ...] = (
    _flip_bit, _flip_bit, _write_number, _write_number, _write_number, _change_letter,
    _remove, _repeat, _overwrite_from_other, _cut,
)  # fmt: skip


def mutants(iterations: int, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    corpus = seeds()
    models = sound_models()
    corpus += [model.written() for model in models]
    for _ in range(iterations):
        if chance.randrange(2):
            yield mutate(chance, chance.choice(corpus), corpus)
        else:
            yield change(chance, chance.choice(models))


def check(data: bytes, tally: Tally) -> GgufMetadata | None:
    """Raises whatever is not allowed to happen."""
    began_s = time.perf_counter()
    try:
        metadata = read_metadata(io.BytesIO(data))
    except InvalidModelFile as refusal:
        assert 0 < len(str(refusal)) < 2000
        tally.refused += 1
        return None
    finally:
        tally.slowest_s = max(tally.slowest_s, time.perf_counter() - began_s)
    tally.accepted += 1
    _check_sane(data, metadata)
    return metadata


def _check_sane(data: bytes, metadata: GgufMetadata) -> None:
    header = read_header(io.BytesIO(data))
    for tensor in header.tensors:
        assert header.data_offset + tensor.offset + tensor.size_bytes <= len(data)
    json.dumps(metadata.as_text_map()).encode("utf-8")
    assert metadata.kv_bytes_per_cell() >= 0
    assert metadata.n_parameters >= 0
    assert metadata.vocab_size >= 0


def fuzz(iterations: int, seed: int, engine: EngineChild | None = None, keep: Path | None = None) -> Tally:
    tally = Tally()
    for number, data in enumerate(mutants(iterations, seed)):
        try:
            accepted = check(data, tally)
            if accepted is not None and engine is not None and not engine.survives(data):
                tally.engine_refused += 1
        except Exception as error:
            tally.failures.append(f"mutant {number}: {type(error).__name__}: {error}")
            if keep is not None:
                (keep / f"mutant-{seed}-{number}.gguf").write_bytes(data)
    if tally.slowest_s > TIME_LIMIT_S:
        tally.failures.append(f"the slowest mutant took {tally.slowest_s:.2f} s")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the GGUF reader.")
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", action="store_true", help="load what is accepted in the real engine")
    parser.add_argument("--keep", type=Path, help="existing directory for mutants that fail")
    given = parser.parse_args()
    engine = EngineChild() if given.engine else None
    try:
        tally = fuzz(given.iterations, given.seed, engine, given.keep)
    finally:
        if engine is not None:
            engine.close()
    print(
        f"{tally.accepted} accepted ({tally.engine_refused} refused by the engine), {tally.refused} refused, "
        f"slowest {tally.slowest_s * 1000:.1f} ms, {len(tally.failures)} failures"
    )
    for failure in tally.failures:
        print(failure)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
