"""The engine on the real model: exact where results must be exact, by distribution where batching may differ.

Rows of one forward pass share matrix products whose order of summation depends on how many rows there are,
so the same sequence in another batch has other last bits: those are compared by KL divergence.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from runner.domain.engine import EngineOptions
from runner.domain.events import Finished, FinishReason, TextDelta
from runner.domain.sampling import SamplingParams
from runner.engine.backend import Backend, DecodeResult, load_backend
from runner.engine.engine import Engine, SequenceRequest
from runner.engine.llama import engine_version
from runner.engine.sampler import Drawn, SamplerPlan, Temperature, TopK
from runner.errors import LoadingFailed

pytestmark = pytest.mark.real_model

# one thread: several spin at barriers, and crawl where the cores are shared with other tests
OPTIONS = EngineOptions(context_size=256, n_cells=256, max_sequences=4, prefill_chunk=32, n_threads=1)
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
KL_BOUND = 1e-2  # the most that was measured between chunk sizes
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def backend(default_model_file: Path) -> Iterator[Backend]:
    told: list[float] = []
    backend = load_backend(
        "llama", default_model_file, OPTIONS, lambda fraction: told.append(fraction) is None
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    yield backend
    backend.close()


@pytest.fixture
def engine(backend: Backend) -> Iterator[Engine]:
    """An engine of its own over the shared backend, whose cells must be free again afterwards."""
    engine = Engine(backend, OPTIONS, stopwatch=lambda: 0.0)  # chunks of one size
    yield engine
    for index in range(10):
        engine.cancel(str(index))
    engine.forget_retained()
    statistics = engine.statistics()
    assert statistics.cells_used == statistics.cells_retained == 0


def submit(
    engine: Engine,
    backend: Backend,
    request_id: str,
    text: str = QUESTION,
    *,
    sampling: SamplingParams = GREEDY,
    max_tokens: int | None = 24,
    stop: tuple[str, ...] = (),
    ignore_eos: bool = False,
) -> int:
    """Number of prompt tokens. Nothing is reused: prompts are cut at the same places every time."""
    tokens = tuple(backend.tokenize(text, add_special=True, parse_special=True))
    engine.submit(
        SequenceRequest(
            request_id=request_id,
            prompt_tokens=tokens,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            ignore_eos=ignore_eos,
            namespace=None,
            submitted_s=time.monotonic(),
        )
    )
    return len(tokens)


def run(engine: Engine) -> tuple[dict[str, str], dict[str, Finished]]:
    texts: dict[str, str] = {}
    ends: dict[str, Finished] = {}
    while engine.has_work:
        for request_id, event in engine.step().events:
            if isinstance(event, TextDelta):
                texts[request_id] = texts.get(request_id, "") + event.text
            else:
                assert isinstance(event, Finished), event
                ends[request_id] = event
    return texts, ends


# one sequence


def test_a_question_is_answered_and_the_turn_ends(backend: Backend, engine: Engine) -> None:
    n_prompt = submit(engine, backend, "0", max_tokens=100)
    texts, ends = run(engine)
    assert "Paris" in texts["0"]
    assert "<|im_end|>" not in texts["0"]
    end = ends["0"]
    assert end.reason is FinishReason.STOP
    assert end.usage.prompt_tokens == n_prompt
    assert 1 < end.usage.completion_tokens < 100
    assert end.timings.prefill_s > 0
    assert end.timings.decode_s > 0


def test_the_same_greedy_request_alone_gives_the_same_text(backend: Backend, engine: Engine) -> None:
    """Alone both times, and cut into the same chunks: exact."""
    answers = []
    for _ in range(2):
        submit(engine, backend, "0")
        answers.append(run(engine)[0]["0"])
    assert answers[0] == answers[1]


def test_the_same_seed_alone_gives_the_same_text_and_another_seed_another(
    backend: Backend, engine: Engine
) -> None:
    answers = []
    for seed in (7, 7, 8):
        submit(engine, backend, "0", "Once upon a time", sampling=SamplingParams(temperature=1.0, seed=seed))
        answers.append(run(engine)[0]["0"])
    assert answers[0] == answers[1] != answers[2]


def test_ignore_eos_never_ends_the_turn(backend: Backend, engine: Engine) -> None:
    for index, sampling in enumerate((GREEDY, SamplingParams(seed=1))):
        submit(engine, backend, str(index), max_tokens=40, sampling=sampling, ignore_eos=True)
    for end in run(engine)[1].values():
        assert end.reason is FinishReason.LENGTH
        assert end.usage.completion_tokens == 40


def test_a_stop_string_across_tokens_ends_the_answer(backend: Backend, engine: Engine) -> None:
    submit(engine, backend, "0")
    whole = run(engine)[0]["0"]
    stop = whole[8:17]
    submit(engine, backend, "0", stop=(stop,))
    texts, ends = run(engine)
    assert texts["0"] == whole[: whole.index(stop)]
    assert ends["0"].reason is FinishReason.STOP


def test_every_piece_of_unusual_text_survives_tokenising_and_detokenising(backend: Backend) -> None:
    text = "naïve 日本語 🤦🏽‍♀️ \t\r\n <|im_end|> \x00 end"
    tokens = backend.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(map(backend.token_piece, tokens)).decode() == text


def test_special_tokens_are_parsed_only_when_asked_and_have_no_text(backend: Backend) -> None:
    (token,) = backend.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert backend.is_end_of_generation(token)
    assert token in backend.end_of_generation
    assert backend.end_of_generation == frozenset(
        filter(backend.is_end_of_generation, range(backend.facts.n_vocab))
    )
    assert backend.token_piece(token) == b""
    assert len(backend.tokenize("<|im_end|>", add_special=False, parse_special=False)) > 1
    assert {"<|im_start|>", "<|im_end|>"} <= backend.control_texts


def test_the_facts_of_the_load(backend: Backend) -> None:
    facts = backend.facts
    assert facts.architecture == "llama"
    assert (facts.n_vocab, facts.trained_context_size) == (49152, 8192)
    per_cell = 30 * 3 * 64 * 2 * 2  # layers x heads x values, K and V, f16; the library tells 0.01 MiB
    (host,) = facts.devices
    assert host.device == "cpu"
    assert host.kv_cache_bytes == pytest.approx(per_cell * OPTIONS.n_cells, abs=10486)
    assert host.weights_bytes > 90e6
    assert 0 < host.compute_bytes < 64e6
    assert host.output_bytes == 49152 * 4 * (OPTIONS.max_sequences + OPTIONS.max_retained)
    assert facts.engine_version == engine_version()
    assert "llama-cpp-python" in engine_version()
    assert (backend.bos_text, backend.eos_text) == ("<|im_start|>", "<|im_end|>")
    assert backend.chat_template is not None
    assert "im_start" in backend.chat_template


# several sequences


def logits_after(backend: Backend, pieces: list[list[int]], *, slot: int = 0) -> npt.NDArray[np.float32]:
    """Logits after a sequence that is put into cells in these pieces; its cells are freed again."""
    position = 0
    for tokens in pieces:
        n_rows = len(tokens)
        backend.batch.tokens[:n_rows] = tokens
        backend.batch.positions[:n_rows] = range(position, position + n_rows)
        backend.batch.sequence_ids[:n_rows] = slot
        backend.batch.wants_logits[:n_rows] = 0
        backend.batch.wants_logits[n_rows - 1] = 1
        assert backend.decode(n_rows) is DecodeResult.DONE
        position += n_rows
    found = backend.logits(len(pieces[-1]) - 1).copy()
    backend.drop_cells(slot)
    return found


def kl_divergence(p_logits: npt.NDArray[np.float32], q_logits: npt.NDArray[np.float32]) -> float:
    p, q = (np.exp(row - row.max(), dtype=np.float64) for row in (p_logits, q_logits))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def test_logits_of_equal_cuts_are_equal_bit_by_bit_also_under_another_id(backend: Backend) -> None:
    tokens = backend.tokenize(QUESTION, add_special=True, parse_special=True)
    first, second, third = (logits_after(backend, [tokens[:9], tokens[9:]], slot=slot) for slot in (0, 0, 3))
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)


def test_logits_of_other_cuts_are_close(backend: Backend) -> None:
    tokens = backend.tokenize(QUESTION * 2, add_special=True, parse_special=True)[:32]
    whole = logits_after(backend, [tokens])
    for cut in (1, 7, 31):
        assert kl_divergence(whole, logits_after(backend, [tokens[:cut], tokens[cut:]])) < KL_BOUND


def watch_logits(backend: Backend, engine: Engine, request_id: str) -> Callable[[], npt.NDArray[np.float32]]:
    """After the first token of a request: a copy of the logits it was chosen from."""
    seen: list[npt.NDArray[np.float32]] = []
    sampler = engine._alive[request_id].alive[0].chooser._sampler
    sample = sampler.sample

    def copying(row: int) -> int:
        seen.append(backend.logits(row).copy())
        return sample(row)

    sampler.sample = copying  # type: ignore[method-assign]  # watched, not changed
    return lambda: seen[0]


def test_a_neighbour_in_the_batch_changes_the_distribution_by_less_than_the_bound(
    backend: Backend, engine: Engine
) -> None:
    """Positions, ids and cells of several sequences do not mix: what would change far more than rounding."""
    submit(engine, backend, "0", max_tokens=1)
    alone = watch_logits(backend, engine, "0")
    run(engine)
    submit(engine, backend, "1", "Count: one, two, three,", max_tokens=40, ignore_eos=True)
    for _ in range(3):
        engine.step()
    submit(engine, backend, "0", max_tokens=1)
    submit(engine, backend, "2", "The quick brown fox " * 6, max_tokens=4)
    beside = watch_logits(backend, engine, "0")
    run(engine)
    assert kl_divergence(alone(), beside()) < KL_BOUND


def test_preempted_sequences_give_their_whole_answers(backend: Backend) -> None:
    options = EngineOptions(context_size=64, n_cells=64, max_sequences=2, prefill_chunk=32)
    engine = Engine(backend, options)
    submit(engine, backend, "0", "One day", max_tokens=40, ignore_eos=True)
    submit(engine, backend, "1", "In winter", max_tokens=40, ignore_eos=True)
    texts, ends = run(engine)
    assert engine.statistics().counts.preemptions > 0
    assert all(end.usage.completion_tokens == 40 for end in ends.values())
    assert min(map(len, texts.values())) > 40


def test_cancelled_cells_are_free_for_others(backend: Backend, engine: Engine) -> None:
    submit(engine, backend, "0", "word " * 150, max_tokens=None)
    for _ in range(4):
        engine.step()
    assert engine.statistics().cells_used == 128
    engine.cancel("0")
    submit(engine, backend, "1", "word " * 150, max_tokens=2)
    assert run(engine)[1]["1"].reason is FinishReason.LENGTH


def test_a_batch_without_cells_is_told_apart_and_changes_nothing(backend: Backend) -> None:
    batch = backend.batch
    for step in range(OPTIONS.n_cells // 32):
        batch.tokens[:32] = 100
        batch.positions[:32] = range(step * 32, step * 32 + 32)
        batch.sequence_ids[:32] = 0
        batch.wants_logits[:32] = 0
        batch.wants_logits[31] = 1
        assert backend.decode(32) is DecodeResult.DONE
    batch.sequence_ids[:32] = 1
    batch.positions[:32] = range(32)
    assert backend.decode(32) is DecodeResult.NO_CELLS
    assert backend.drop_cells(0)
    assert backend.decode(32) is DecodeResult.DONE
    assert backend.drop_cells(1)


def test_positions_out_of_order_fail_the_pass_and_not_the_process(backend: Backend) -> None:
    batch = backend.batch
    batch.tokens[:2] = 100
    batch.positions[:2] = (0, 5)
    batch.sequence_ids[:2] = 0
    batch.wants_logits[:2] = (0, 1)
    assert backend.decode(2) is DecodeResult.FAILED
    assert backend.drop_cells(0)


# sampling


def test_a_draw_keeps_to_its_filters(backend: Backend) -> None:
    tokens = backend.tokenize("The best colour is", add_special=True, parse_special=True)
    n_rows = len(tokens)
    logits_after(backend, [tokens])  # leaves its rows in the batch
    assert backend.decode(n_rows) is DecodeResult.DONE
    ranked = np.argsort(-backend.logits(n_rows - 1))
    stages = (TopK(3), Temperature(value=2.0))
    plan = SamplerPlan(stages=stages, draw=Drawn(1), forbidden=(int(ranked[0]),))
    sampler = backend.new_sampler(plan)
    drawn = {sampler.sample(n_rows - 1) for _ in range(60)}
    assert drawn == {int(token) for token in ranked[1:4]}
    sampler.close()
    greedy = backend.new_sampler(SamplerPlan())
    assert greedy.sample(n_rows - 1) == backend.logits(n_rows - 1).argmax()
    backend.drop_cells(0)


# loading


def test_a_file_that_is_no_model_is_a_failed_load(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LoadingFailed) as caught:
        load_backend("llama", path, OPTIONS, lambda _: True)
    assert str(tmp_path) not in str(caught.value)


def test_a_load_can_be_given_up(default_model_file: Path) -> None:
    with pytest.raises(LoadingFailed):
        load_backend("llama", default_model_file, OPTIONS, lambda fraction: fraction < 0.1)


def test_a_fault_in_the_progress_report_is_raised_where_the_load_was_asked_for(
    default_model_file: Path,
) -> None:
    def progress(fraction: float) -> bool:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        load_backend("llama", default_model_file, OPTIONS, progress)


def test_a_pool_smaller_than_a_batch_loads_and_works(default_model_file: Path) -> None:
    options = EngineOptions(context_size=16, n_cells=16, max_sequences=4, prefill_chunk=64)
    backend = load_backend("llama", default_model_file, options, lambda _: True)
    engine = Engine(backend, options)
    submit(engine, backend, "0", "One two three four five six", max_tokens=None, ignore_eos=True)
    end = run(engine)[1]["0"]
    assert end.usage.prompt_tokens + end.usage.completion_tokens == 16
    engine.close()
    backend.close()  # twice is harmless


def test_the_scripted_engine_does_not_load_the_library(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"")
    program = (
        "import sys; from pathlib import Path\n"
        "from runner.domain.engine import EngineOptions; from runner.engine.backend import load_backend\n"
        f"load_backend('scripted', Path({str(tmp_path / 'weights')!r}),"
        " EngineOptions(context_size=8, n_cells=8), lambda _: True)\n"
        "assert 'llama_cpp' not in sys.modules and 'trio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
