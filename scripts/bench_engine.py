"""The engine alone, for scripts/bench.py: one process, no daemon, no HTTP, no frames.

    bench_engine.py MODEL.gguf CONTEXT_SIZE N_CELLS N_THREADS

One JSON object per line on stdin (`prompts`, `clients`, `tokens`), one on stdout (the fields of `Round`).
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench import nearest_rank

from runner.chat.template import ChatTemplate
from runner.domain.engine import EngineOptions
from runner.domain.events import TextDelta
from runner.domain.generation import ChatMessage
from runner.domain.sampling import SamplingParams
from runner.engine.backend import Backend, load_backend
from runner.engine.engine import Engine
from runner.engine.prefix import Namespace
from runner.engine.sequence import SequenceRequest


def main() -> None:
    path, context_size, n_cells, n_threads = Path(sys.argv[1]), *(int(text) for text in sys.argv[2:5])
    options = EngineOptions(context_size=context_size, n_cells=n_cells, n_threads=n_threads)
    backend = load_backend("llama", path, options, lambda fraction: True)
    template = ChatTemplate(backend.chat_template, backend.bos_text, backend.eos_text)
    engine = Engine(backend, options)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [_tokens(backend, template, prompt) for prompt in asked["prompts"]]
        print(json.dumps(run(engine, prompts, asked["clients"], asked["tokens"])), flush=True)
    engine.close()


def _tokens(backend: Backend, template: ChatTemplate, prompt: str) -> tuple[int, ...]:
    text = template.render((ChatMessage(role="user", content=prompt),), {})
    return tuple(backend.tokenize(text, add_special=False, parse_special=True))


def run(engine: Engine, prompts: list[tuple[int, ...]], clients: int, tokens: int) -> dict[str, Any]:
    """A closed loop of `clients` sequences over all prompts."""
    waiting = list(enumerate(prompts))
    started: dict[str, float] = {}
    arrivals: dict[str, list[float]] = {}
    ended = 0
    begin_s = time.perf_counter()
    while ended < len(prompts):
        while waiting and len(started) - ended < clients:
            index, prompt = waiting.pop(0)
            name = str(index)
            started[name] = time.perf_counter()
            arrivals[name] = []
            engine.submit(
                SequenceRequest(
                    request_id=name,
                    prompt_tokens=prompt,
                    sampling=SamplingParams(temperature=0.8),
                    max_tokens=tokens,
                    ignore_eos=True,
                    namespace=Namespace(),
                    submitted_s=time.monotonic(),
                )
            )
        output = engine.step()
        now_s = time.perf_counter()
        for name, event in output.events:
            if isinstance(event, TextDelta):
                arrivals[name].append(now_s)
            else:
                ended += 1
    elapsed_s = time.perf_counter() - begin_s
    gaps = sorted(b - a for times in arrivals.values() for a, b in itertools.pairwise(times))
    first = sorted(times[0] - started[name] for name, times in arrivals.items())
    return {
        "tokens_per_s": tokens * len(prompts) / elapsed_s,
        "first_token_s": statistics.median(first),
        "first_token_p95_s": nearest_rank(first, 0.95),
        "gap_p50_s": statistics.median(gaps),
        "gap_p95_s": nearest_rank(gaps, 0.95),
    }


if __name__ == "__main__":
    main()
