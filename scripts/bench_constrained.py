#!/usr/bin/env python3
"""What a JSON schema costs: tokens/s of the engine with and without one, in turns, at 1 and 8 streams.

    scripts/bench_constrained.py MODEL.gguf [TOKENS [PAIRS [THREADS]]]
    scripts/bench_constrained.py MODEL.gguf --peer LLAMA_SERVER

With a peer: answers by a schema over HTTP, our daemon's beside those of llama-server's grammar, in turns.
Else only decoding counts: from the step at which the last prompt is done to the last one in which all
streams run.
On a machine that others use too, the figures per second of processor time tell more.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import HttpSide, our_daemon, peer_server  # noqa: E402
from bench_prompts import medians  # noqa: E402

from runner.domain.constraints import Constraint, ConstraintKind  # noqa: E402
from runner.domain.engine import EngineOptions  # noqa: E402
from runner.domain.events import Finished  # noqa: E402
from runner.domain.sampling import SamplingParams  # noqa: E402
from runner.engine.backend import Backend, load_backend  # noqa: E402
from runner.engine.constraints import CompiledConstraint, ConstraintCompiler  # noqa: E402
from runner.engine.engine import Engine  # noqa: E402
from runner.engine.sequence import SequenceRequest  # noqa: E402

PEOPLE = """{"type": "array", "minItems": 100, "items": {"type": "object", "properties": {
"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
"city": {"type": "string", "maxLength": 40}, "married": {"type": "boolean"},
"hobbies": {"type": "array", "items": {"type": "string", "maxLength": 30}, "maxItems": 3}},
"required": ["name", "age", "city", "married", "hobbies"], "additionalProperties": false}}"""
QUESTION = "<|im_start|>user\nList {} people as JSON.<|im_end|>\n<|im_start|>assistant\n"


def main() -> None:
    if sys.argv[2:3] == ["--peer"]:
        compare(Path(sys.argv[1]), Path(sys.argv[3]))
        return
    n_tokens, n_pairs, n_threads = (
        int(text) for text in (*sys.argv[2:], *("96", "3", "2")[len(sys.argv) - 2 :])
    )
    options = EngineOptions(context_size=2048, n_cells=4096, n_threads=n_threads)
    backend = load_backend("llama", Path(sys.argv[1]), options, lambda fraction: True)
    engine = Engine(backend, options)
    began_s = time.perf_counter()
    compiler = ConstraintCompiler(backend.new_constraint_tokenizer)
    compiler.prepare()
    tokenizer_s = time.perf_counter() - began_s
    compiled = compiler.compile(
        Constraint(kind=ConstraintKind.JSON_SCHEMA, source=PEOPLE, path="response_format")
    )
    compile_s = time.perf_counter() - began_s - tokenizer_s
    print(f"tokenizer {tokenizer_s:.2f} s, schema {compile_s * 1000:.1f} ms")
    for n_streams in (1, 8):
        pairs = [
            [
                rate(engine, _prompts(backend, pair, n_streams), n_tokens, constraint)
                for constraint in (None, compiled)
            ]
            for pair in range(n_pairs)
        ]
        for name, place in (("s", 0), ("s of processor time", 1)):
            free, held = (
                statistics.median(rates[place] for rates in column) for column in zip(*pairs, strict=True)
            )
            ratios = [held[place] / free[place] for free, held in pairs]
            print(
                f"{n_streams} streams: {free:.1f} tokens/{name} free, {held:.1f} constrained, ratio "
                f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})",
                flush=True,
            )
    engine.close()


def compare(model: Path, program: Path) -> None:
    """As many answers at once; the schema lets none of them end before `max_tokens`."""
    schema = json.loads(PEOPLE)
    ours_asks = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "people", "schema": schema}}
    }
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name, contextlib.ExitStack() as stack:
        ours = stack.enter_context(our_daemon(model, Path(name)))
        peer = stack.enter_context(peer_server(program, model, Path(name), []))
        sides = ((ours, ours_asks), (peer, {"json_schema": schema}))
        for n_streams in (1, 8):
            rates: list[list[float]] = [[], []]
            for pair in range(-1, 5):
                for place in (0, 1) if pair % 2 else (1, 0):
                    measured = answer_rate(*sides[place], n_streams=n_streams, pair=pair)
                    if pair >= 0:
                        rates[place].append(measured)
            print(f"{n_streams} streams by a schema, tokens/s:", medians(*rates), flush=True)


def answer_rate(side: HttpSide, asked: dict[str, Any], *, n_streams: int, pair: int) -> float:
    """Tokens/s of all answers together, prompts included."""
    time.sleep(0.3)

    def ask(index: int) -> int:
        prompt = f"{3 + 10 * pair + index} people as JSON: "
        body = {"model": side.model, "prompt": prompt, "max_tokens": 96, "temperature": 0.8, **asked}
        connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=300)
        with contextlib.closing(connection):
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{side.name} answered {response.status}: {content[:500]!r}")
        return int(json.loads(content)["usage"]["completion_tokens"])

    began_s = time.perf_counter()
    with ThreadPoolExecutor(n_streams) as pool:
        n_tokens = sum(pool.map(ask, range(n_streams)))
    return n_tokens / (time.perf_counter() - began_s)


def _prompts(backend: Backend, pair: int, n_streams: int) -> list[tuple[int, ...]]:
    texts = (QUESTION.format(3 + 10 * pair + index) for index in range(n_streams))
    return [tuple(backend.tokenize(text, add_special=True, parse_special=True)) for text in texts]


def rate(
    engine: Engine, prompts: list[tuple[int, ...]], n_tokens: int, constraint: CompiledConstraint | None
) -> tuple[float, float]:
    """Tokens of all streams together, per second and per second of processor time."""
    for index, prompt in enumerate(prompts):
        engine.submit(
            SequenceRequest(
                request_id=str(index),
                prompt_tokens=prompt,
                sampling=SamplingParams(seed=index),
                max_tokens=n_tokens,
                ignore_eos=True,
                constraint=constraint,
                submitted_s=time.monotonic(),
            )
        )
    while engine.step().decode_tokens < len(prompts):
        pass
    decoded, began_s, began_cpu_s = 0, time.perf_counter(), time.process_time()
    while engine.has_work:
        output = engine.step()
        decoded += output.decode_tokens
        if any(isinstance(event, Finished) for _, event in output.events):
            break
    elapsed_s, elapsed_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    while engine.has_work:
        engine.step()
    return decoded / elapsed_s, decoded / elapsed_cpu_s


if __name__ == "__main__":
    main()
