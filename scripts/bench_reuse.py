"""What shared prefixes are worth, in the engine alone: no daemon, no HTTP, no frames.

    bench_reuse.py MODEL.gguf [--threads N] [--system TOKENS] [--requests N] [--clients N] [--tokens N]

1. Requests with a common system prompt and a question each, so many at a time: with sharing, and with every
   request computing its own prompt.
2. A conversation of ten turns: the share of each turn's prompt that was in cells.

Prints a table. Tokens are counted, and times taken, in this process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import attrs

from runner.domain.engine import EngineOptions
from runner.domain.events import Finished, TextDelta
from runner.domain.sampling import SamplingParams
from runner.engine.backend import Backend, load_backend
from runner.engine.engine import Engine
from runner.engine.prefix import Namespace
from runner.engine.sequence import SequenceRequest

_FILLER = "The assistant answers briefly, in plain words, and says so when it does not know something. "
_QUESTIONS = ("How far is it to the moon?", "Who wrote Faust?", "What is a prime number?", "Why is it dark?")


@attrs.define
class Outcome:
    """`first_s` are the times to the first token."""

    elapsed_s: float = 0.0
    prefilled: int = 0
    cached: int = 0
    prompt: int = 0
    first_s: list[float] = attrs.field(factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--system", type=int, default=300, help="tokens of the system prompt")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    asked = parser.parse_args()
    options = EngineOptions(context_size=4096, n_cells=8192, n_threads=asked.threads)
    backend = load_backend("llama", asked.model, options, lambda fraction: True)
    engine = Engine(backend, options)
    prompts = shared_prompts(backend, asked.system, asked.requests)
    print(f"{asked.requests} requests, {asked.clients} at a time, {asked.system} tokens in common:")
    for name, namespace in (("each for itself", None), ("shared", Namespace())):
        outcome = run(engine, prompts, asked.clients, asked.tokens, namespace)
        first_s = sorted(outcome.first_s)
        print(
            f"  {name:<16} {outcome.elapsed_s:6.2f} s, {outcome.prefilled} of {outcome.prompt} prompt tokens "
            f"computed, first token after {statistics.median(first_s):.2f} s (median), "
            f"{first_s[int(0.95 * (len(first_s) - 1))]:.2f} s (p95)"
        )
        engine.forget_retained()
    print("a conversation of ten turns, share of the prompt that was in cells:")
    print("  " + " ".join(f"{share:.1%}" for share in conversation(backend, engine, asked.tokens)))
    engine.close()


def shared_prompts(backend: Backend, n_system: int, n_requests: int) -> list[tuple[int, ...]]:
    system = backend.tokenize(_FILLER * n_system, add_special=True, parse_special=False)[:n_system]
    return [
        (*system, *backend.tokenize(f"{index}. {question}", add_special=False, parse_special=False))
        for index, question in enumerate(_QUESTIONS * n_requests)
    ][:n_requests]


def run(
    engine: Engine, prompts: list[tuple[int, ...]], clients: int, tokens: int, namespace: Namespace | None
) -> Outcome:
    """A closed loop of `clients` over all prompts."""
    outcome, waiting = Outcome(), list(enumerate(prompts))
    started: dict[str, float] = {}
    first_s: dict[str, float] = {}
    n_ended = 0
    begin_s = time.perf_counter()
    while n_ended < len(prompts):
        while waiting and len(started) - n_ended < clients:
            index, prompt = waiting.pop(0)
            started[str(index)] = time.perf_counter()
            engine.submit(_request(str(index), prompt, tokens, namespace))
        output = engine.step()
        outcome.prefilled += output.prefill_tokens
        for name, event in output.events:
            if isinstance(event, TextDelta):
                first_s.setdefault(name, time.perf_counter() - started[name])
            elif isinstance(event, Finished):
                n_ended += 1
                outcome.cached += event.usage.cached_tokens
                outcome.prompt += event.usage.prompt_tokens
    outcome.elapsed_s = time.perf_counter() - begin_s
    outcome.first_s = list(first_s.values())
    return outcome


def _request(name: str, prompt: tuple[int, ...], tokens: int, namespace: Namespace | None) -> SequenceRequest:
    return SequenceRequest(
        request_id=name,
        prompt_tokens=prompt,
        sampling=SamplingParams(seed=1),
        max_tokens=tokens,
        ignore_eos=True,
        namespace=namespace,
        submitted_s=time.monotonic(),
    )


def conversation(backend: Backend, engine: Engine, tokens: int) -> list[float]:
    """Turn by turn the cached share of what was a prompt or an answer in the turn before."""
    shares = []
    text, n_before = _FILLER * 3, 0
    for turn in range(10):
        text += f"\nuser: {_QUESTIONS[turn % len(_QUESTIONS)]}\nassistant:"
        prompt = tuple(backend.tokenize(text, add_special=True, parse_special=False))
        engine.submit(_request(str(turn), prompt, tokens, Namespace()))
        while engine.has_work:
            for _, event in engine.step().events:
                if isinstance(event, TextDelta):
                    text += event.text
                elif isinstance(event, Finished) and n_before:
                    shares.append(event.usage.cached_tokens / n_before)
        n_before = len(prompt) + tokens - 1
    return shares


if __name__ == "__main__":
    main()
