"""The scripted backend follows its directives, and is as strict as a real one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.domain.engine import EngineOptions
from runner.engine import fake, fake_faults
from runner.engine.backend import DecodeResult, load_backend
from runner.engine.fake import ANSWER, BOS, CONTROL, END, Fault, Script, ScriptedBackend, read_script
from runner.engine.sampler import SamplerPlan
from runner.errors import LoadingFailed
from runner.hardware.resident import anonymous_bytes

OPTIONS = EngineOptions(context_size=64, n_cells=128, max_sequences=2, prefill_chunk=32)


def fill(backend: ScriptedBackend, tokens: list[int], *, slot: int = 0, start: int = 0) -> DecodeResult:
    """One pass over `tokens` of a sequence; the last wants logits."""
    n_rows = len(tokens)
    backend.batch.tokens[:n_rows] = tokens
    backend.batch.positions[:n_rows] = range(start, start + n_rows)
    backend.batch.sequence_ids[:n_rows] = slot
    backend.batch.wants_logits[:n_rows] = 0
    backend.batch.wants_logits[n_rows - 1] = 1
    return backend.decode(n_rows)


def answer(prompt: list[int], *, n_tokens: int = 40, forbidden: tuple[int, ...] = ()) -> bytes:
    backend = ScriptedBackend(OPTIONS)
    sampler = backend.new_sampler(SamplerPlan(forbidden=forbidden))
    tokens, pending = list(prompt), list(prompt)
    while len(tokens) < len(prompt) + n_tokens:
        assert fill(backend, pending, start=len(tokens) - len(pending)) is DecodeResult.DONE
        token = sampler.sample(len(pending) - 1)
        if token == END:
            break
        tokens.append(token)
        pending = [token]
    return b"".join(map(backend.token_piece, tokens[len(prompt) :]))


def prompt_of(text: str) -> list[int]:
    return ScriptedBackend(OPTIONS).tokenize(text, add_special=True, parse_special=True)


def test_a_question_is_answered_with_itself() -> None:
    assert answer(prompt_of("hé!")) == "hé!".encode()


def test_of_a_conversation_the_last_message_is_the_question() -> None:
    chat = "<|system|>be brief<|end|><|user|>one<|end|><|assistant|>one<|end|><|user|>two<|end|><|answer|>"
    assert answer(prompt_of(chat), n_tokens=30) == b"two"


def test_a_forbidden_end_continues_with_the_alphabet() -> None:
    assert answer(prompt_of("x"), n_tokens=5, forbidden=(END,)) == b"xyzab"


def test_tokens_without_the_answer_mark_continue_with_the_alphabet() -> None:
    assert answer([ord("a")], n_tokens=3) == b"bcd"


@pytest.mark.parametrize(
    ("question", "script"),
    [
        (b"plain [text]", Script(answer=b"plain [text]")),
        (b"please [[say a [b] c]] now", Script(answer=b"a [b] c")),
        (b"[[hex e282]][[say x]]", Script(answer=b"\xe2\x82x")),
        (b"[[repeat 3 ab ]]", Script(answer=b"ab ab ab ")),
        (b"[[say a]][[threads 5]]", Script(answer=b"a", n_told_threads=5)),
        (b"[[count 3]]", Script(answer=b"1 2 3")),
        (b"[[forever]]", Script(answer=b"", is_endless=True)),
        (b"[[slow 250]][[noise 9]]", Script(answer=b"", slow_s=0.25, n_noise=9)),
        (b"[[crash segv]]", Script(answer=b"", faults=(Fault("crash", "segv", 0),))),
        (b"[[crash kill after 12]]", Script(answer=b"", faults=(Fault("crash", "kill", 12),))),
        (b"[[hang after 2]]", Script(answer=b"", faults=(Fault("hang", "", 2),))),
        (b"[[grow 64]]", Script(answer=b"", faults=(Fault("grow", "64", 0),))),
        (b"[[grow 64 after 3]]", Script(answer=b"", faults=(Fault("grow", "64", 3),))),
        (b"[[grow much]]", Script(answer=b"cannot follow [[grow]]")),
        (b"[[nan]]", Script(answer=b"", faults=(Fault("nan", "", 0),))),
        (b"[[dance]]", Script(answer=b"cannot follow [[dance]]")),
        (b"[[crash gently]]", Script(answer=b"cannot follow [[crash]]")),
        (b"[[fail soon]]", Script(answer=b"cannot follow [[fail]]")),
        (b"[[count many]]", Script(answer=b"cannot follow [[count]]")),
        (b"[[hex zz]]", Script(answer=b"cannot follow [[hex]]")),
    ],
)
def test_directives(question: bytes, script: Script) -> None:
    assert read_script(question) == script


def test_special_tokens_are_parsed_only_when_asked() -> None:
    backend = ScriptedBackend(OPTIONS)
    assert backend.tokenize("<|bos|>a<|end|>", add_special=False, parse_special=True) == [BOS, 97, END]
    assert backend.tokenize("<|bos|>", add_special=False, parse_special=False) == list(b"<|bos|>")
    assert backend.tokenize("a", add_special=True, parse_special=False) == [BOS, 97, ANSWER]
    assert backend.tokenize("<|bos|>a<|answer|>", add_special=True, parse_special=True) == [BOS, 97, ANSWER]
    assert backend.control_texts == set(CONTROL)


def test_control_tokens_have_no_text() -> None:
    backend = ScriptedBackend(OPTIONS)
    assert [backend.token_piece(token) for token in (65, 255, BOS, END)] == [b"A", b"\xff", b"", b""]


def test_slowness_is_per_pass_and_the_slowest_counts() -> None:
    slept: list[float] = []
    backend = ScriptedBackend(OPTIONS, sleep=slept.append)
    fill(backend, prompt_of("[[slow 30]]"))
    fill(backend, prompt_of("quick"), slot=1)
    assert slept == [0.03]


def test_a_pass_that_does_not_fit_changes_nothing() -> None:
    backend = ScriptedBackend(EngineOptions(context_size=64, n_cells=4, prefill_chunk=32))
    assert fill(backend, [1, 2, 3]) is DecodeResult.DONE
    assert fill(backend, [4, 5], start=3) is DecodeResult.NO_CELLS
    assert backend.cells_used == 3
    assert fill(backend, [4], start=3) is DecodeResult.DONE


def test_a_position_out_of_order_fails_the_pass() -> None:
    backend = ScriptedBackend(OPTIONS)
    assert fill(backend, [1, 2], start=1) is DecodeResult.FAILED


def test_a_scripted_failure_leaves_its_rows_until_they_are_dropped() -> None:
    backend = ScriptedBackend(OPTIONS)
    prompt = prompt_of("[[fail]]")
    assert fill(backend, prompt) is DecodeResult.FAILED
    assert backend.cells_used == len(prompt)
    assert backend.drop_cells(0, 2)
    assert backend.cells_used == 2
    assert backend.drop_cells(0)
    assert backend.cells_used == 0


def test_nan_is_what_the_sampler_refuses() -> None:
    backend = ScriptedBackend(OPTIONS)
    fill(backend, prompt_of("[[nan]]"))
    assert np.isnan(backend.logits(len(prompt_of("[[nan]]")) - 1)).all()


@pytest.mark.parametrize(
    ("how", "returncode"),
    [
        ("segv", -signal.SIGSEGV),
        ("bus", -signal.SIGBUS),
        ("abort", -signal.SIGABRT),
        ("kill", -signal.SIGKILL),
        ("exit", 3),
        ("exception", 1),
    ],
)
def test_a_scripted_crash_ends_the_process(how: str, returncode: int) -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"from runner.engine.fake_faults import crash; crash({how!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert done.returncode == returncode


# loading


def load(path: Path, told: list[float], *, goes_on: bool = True) -> ScriptedBackend:
    def progress(fraction: float) -> bool:
        told.append(fraction)
        return goes_on

    backend = load_backend("scripted", path, OPTIONS, progress)
    assert isinstance(backend, ScriptedBackend)
    return backend


def test_any_file_loads_and_progress_is_told(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"anything" * 20_000)
    told: list[float] = []
    backend = load(tmp_path / "weights", told)
    assert told == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert backend.facts.devices[0].weights_bytes == 160_000
    assert backend.facts.n_vocab == 256 + len(CONTROL)


def test_a_load_that_is_given_up_fails(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"")
    with pytest.raises(LoadingFailed):
        load(tmp_path / "weights", [], goes_on=False)


def test_a_file_can_refuse_to_load(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"GGUF\x03\x00 general.description [[load fail]] rest")
    with pytest.raises(LoadingFailed):
        load(tmp_path / "weights", [])


def test_a_file_can_take_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(fake.time, "sleep", slept.append)
    (tmp_path / "weights").write_bytes(b"[[load slow 2000]]")
    load(tmp_path / "weights", [])
    assert sum(slept) == 2


def test_a_missing_file_is_a_failed_load_that_names_no_path(tmp_path: Path) -> None:
    with pytest.raises(LoadingFailed) as caught:
        load(tmp_path / "absent", [])
    assert "absent" not in str(caught.value)


def test_an_unknown_engine_is_a_failed_load(tmp_path: Path) -> None:
    with pytest.raises(LoadingFailed):
        load_backend("steam", tmp_path, OPTIONS, lambda _: True)


def test_memory_that_a_script_takes_is_taken() -> None:
    before = anonymous_bytes() or 0  # the system may take back mapped files at any time
    fake_faults.grow(64)
    try:
        assert (anonymous_bytes() or 0) - before > 60 * 2**20
    finally:
        fake_faults.grown.clear()
