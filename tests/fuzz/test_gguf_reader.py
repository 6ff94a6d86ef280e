"""Some rounds of the fuzzer in every test run; longer ones by hand."""

from __future__ import annotations

from tests.fuzz.engine import EngineChild
from tests.fuzz.gguf_models import sound_models
from tests.fuzz.gguf_reader import fuzz, mutants


def test_G01_mutants_are_described_or_refused() -> None:
    tally = fuzz(iterations=2000, seed=1)
    assert not tally.failures
    assert tally.accepted > 200
    assert tally.refused > 200


def test_G05_what_we_accept_does_not_end_the_engine() -> None:
    engine = EngineChild()
    try:
        assert all(engine.survives(model.written()) for model in sound_models())
        tally = fuzz(iterations=400, seed=2, engine=engine)
    finally:
        engine.close()
    assert not tally.failures
    assert tally.accepted > tally.engine_refused > 0


def test_the_same_seed_gives_the_same_mutants() -> None:
    assert list(mutants(50, 3)) == list(mutants(50, 3)) != list(mutants(50, 4))
