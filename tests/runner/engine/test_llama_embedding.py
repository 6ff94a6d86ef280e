"""Embeddings of llama.cpp: an encoder's against numpy, a generating model's beside what it generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from runner.domain.engine import EngineOptions
from runner.domain.events import Embedded, Finished, TextDelta
from runner.domain.generation import EmbeddingPrompt, TextPrompt
from runner.domain.sampling import SamplingParams
from runner.engine import llama_memory
from runner.engine.backend import Backend, EmbeddingFacts, Pooling, load_backend
from runner.engine.embed import EmbeddingRequest
from runner.engine.engine import Engine
from runner.engine.llama_memory import measure
from runner.engine.sequence import SequenceRequest
from runner.engine.told import EngineEvent
from runner.errors import LoadingFailed
from runner.gguf.metadata import read_metadata
from runner.store.package import check_weights
from runner.worker.embedding_inputs import InputReader
from scripts.tiny_gguf import TinyModel, write_tiny_gguf
from tests.support.embedding_inputs import read_all
from tests.support.tiny_encoder import CLS, LENGTH, SEP, VOCABULARY, WIDTH, tiny_bert
from tests.support.tiny_kinds import write_hybrid, write_recurrent, write_windowed

OPTIONS = EngineOptions(context_size=256, n_cells=512, prefill_chunk=32, n_threads=1)
OF_ENCODER = EngineOptions(context_size=LENGTH, n_cells=2 * LENGTH, prefill_chunk=16, n_threads=1)
Vector = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert().write_gguf(tmp_path_factory.mktemp("models") / "bert.gguf")


@contextmanager
def loaded(path: Path, options: EngineOptions) -> Iterator[tuple[Backend, Engine]]:
    backend = load_backend("llama", path, options, lambda fraction: True)
    engine = Engine(backend, options, stopwatch=lambda: 0.0)  # chunks of one size
    try:
        yield backend, engine
    finally:
        engine.close()


def embed(engine: Engine, *inputs: tuple[int, ...], dimensions: int | None = None) -> list[Vector]:
    engine.submit(EmbeddingRequest(request_id="e", inputs=inputs, dimensions=dimensions))
    events: list[tuple[str, EngineEvent]] = []
    while engine.has_work:
        events += engine.step().events
    *told, last = [event for name, event in events if name == "e"]
    assert isinstance(last, Finished)
    vectors = {one.input_index: np.frombuffer(one.vector, "<f4") for one in told if isinstance(one, Embedded)}
    return [vectors[index] for index in range(len(inputs))]


def test_an_encoders_embeddings_are_those_of_numpy(encoder_file: Path) -> None:
    reference = tiny_bert()
    random = np.random.default_rng(5)
    inputs = [
        (CLS, *random.integers(5, len(VOCABULARY), length).tolist(), SEP)
        for length in (1, 3, 9, 20, LENGTH - 2)
    ]
    with loaded(encoder_file, OF_ENCODER) as (backend, engine):
        facts = backend.facts
        vectors = embed(engine, *inputs)
    assert (facts.generates, facts.architecture) == (False, "bert")
    assert facts.embedding == EmbeddingFacts(
        n_dimensions=WIDTH, input_max=LENGTH, pooling=Pooling.MEAN, is_whole=True, max_sequences=64
    )
    for vector, tokens in zip(vectors, inputs, strict=True):
        assert float(vector @ reference.embed(tokens)) >= 0.9999


def test_an_encoder_reads_its_words_and_cuts_what_is_too_long(encoder_file: Path) -> None:
    with loaded(encoder_file, OF_ENCODER) as (backend, _):
        reader = InputReader(backend)
        prompt = EmbeddingPrompt(inputs=(TextPrompt("The cat"), TextPrompt("cat " * 200)), truncates=True)
        short, long = read_all(reader, prompt)
    names = [VOCABULARY[token] for token in short]
    assert names == ["[CLS]", "the", "cat", "[SEP]"]
    assert len(long) == LENGTH
    assert (long[0], long[-1]) == (CLS, SEP)


def test_the_first_dimensions_have_length_one(encoder_file: Path) -> None:
    with loaded(encoder_file, OF_ENCODER) as (_, engine):
        [whole] = embed(engine, (CLS, 7, 8, SEP))
        [cut] = embed(engine, (CLS, 7, 8, SEP), dimensions=10)
    assert cut == pytest.approx(whole[:10] / np.linalg.norm(whole[:10]), abs=1e-6)


def test_an_encoder_is_a_model_that_can_be_packaged_and_sized(encoder_file: Path) -> None:
    metadata = read_metadata(encoder_file)
    check_weights(metadata)
    assert (metadata.architecture, metadata.context_length) == ("bert", LENGTH)
    [host] = measure(encoder_file, OF_ENCODER).devices
    assert host.weights_bytes > 0
    assert host.kv_cache_bytes == 0


def test_a_model_that_ranks_texts_is_refused(encoder_file: Path, tmp_path: Path) -> None:
    data = encoder_file.read_bytes()
    key = b"bert.pooling_type"
    at = data.index(key) + len(key) + 4  # behind the type of the value
    ranking = tmp_path / "ranking.gguf"
    rank = int(gguf.PoolingType.RANK).to_bytes(4, "little")
    ranking.write_bytes(data[:at] + rank + data[at + 4 :])
    with pytest.raises(LoadingFailed, match="ranks"):
        load_backend("llama", ranking, OF_ENCODER, lambda fraction: True)


def test_a_generating_models_embedding_does_not_depend_on_its_company(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", TinyModel(n_layers=3))
    long, short = tuple(range(10, 110)), (1, 2, 3)
    with loaded(path, OPTIONS) as (backend, engine):
        assert backend.facts.generates
        alone = [*embed(engine, long), *embed(engine, short)]
        together = embed(engine, long, short, short)
    assert float(alone[0] @ together[0]) == pytest.approx(1, abs=1e-4)
    assert float(alone[1] @ together[1]) == pytest.approx(1, abs=1e-4)
    assert float(alone[1] @ together[2]) == pytest.approx(1, abs=1e-4)
    assert abs(float(alone[0] @ alone[1])) < 0.999


def test_what_is_generated_does_not_depend_on_embeddings_beside_it(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")

    def generated(engine: Engine) -> str:
        request = SequenceRequest(
            request_id="t",
            prompt_tokens=tuple(range(20, 60)),
            sampling=SamplingParams(temperature=0),
            max_tokens=12,
            namespace=None,
            submitted_s=0.0,
        )
        engine.submit(request)
        texts: list[str] = []
        while engine.has_work:
            texts += [event.text for _, event in engine.step().events if isinstance(event, TextDelta)]
        return "".join(texts)

    with loaded(path, OPTIONS) as (_, engine):
        before = generated(engine)
        engine.submit(EmbeddingRequest(request_id="e", inputs=((3,) * 100,) * 3))
        assert generated(engine) == before


@pytest.mark.parametrize("write", [write_windowed, write_recurrent, write_hybrid])
def test_models_with_other_memory_make_embeddings_too(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "model.gguf")
    with loaded(path, OPTIONS) as (_, engine):
        first = embed(engine, tuple(range(120)), (5, 6))
        second = embed(engine, (5, 6), tuple(range(120)))
    assert float(first[0] @ second[1]) == pytest.approx(1, abs=1e-3)
    assert float(first[1] @ second[0]) == pytest.approx(1, abs=1e-3)


def test_O01_room_for_the_outputs_of_a_longest_input_counts(
    encoder_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library makes room for logits too, which no encoder has."""
    monkeypatch.setattr(llama_memory, "anonymous_bytes", lambda: 0)
    samplers_bytes = OF_ENCODER.max_sequences * len(VOCABULARY) * 12
    outputs_bytes = (LENGTH - 64) * (len(VOCABULARY) + WIDTH) * 4
    assert measure(encoder_file, OF_ENCODER).process_bytes == samplers_bytes + outputs_bytes
