"""Embeddings of short texts: our daemon beside llama-server, in turns, in one request and in several at once.

    scripts/bench_embeddings.py MODEL.gguf --peer LLAMA_SERVER [--texts N] [--pairs N]

`scripts/minilm.py` makes a MODEL.gguf of all-MiniLM-L6-v2. Both get the same texts over HTTP, which differ
from round to round; medians and ratios of one run are printed, and the least cosine between both answers.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bench import HttpSide, our_daemon, peer_server
from bench_prompts import filler, medians

_PAUSE_S = 0.3
_REQUESTS = 8
"""At once, where not all texts are in one."""


def embed(side: HttpSide, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=300)
    body = json.dumps({"model": side.model, "input": list(texts)})
    with contextlib.closing(connection):
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{side.name} answered {response.status}: {content[:500]!r}")
    data = sorted(json.loads(content)["data"], key=lambda one: one["index"])
    return np.array([one["embedding"] for one in data], dtype=np.float32)


def timed(side: HttpSide, texts: Sequence[str], n_requests: int) -> tuple[float, npt.NDArray[np.float32]]:
    """Seconds for all of them, in so many requests at once, and the vectors."""
    time.sleep(_PAUSE_S)
    size = -(-len(texts) // n_requests)
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    with ThreadPoolExecutor(n_requests) as pool:
        began_s = time.perf_counter()
        vectors = np.concatenate(list(pool.map(lambda part: embed(side, part), parts)))
        return time.perf_counter() - began_s, vectors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", type=Path, required=True, help="llama-server")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--words", type=int, default=12, help="of each text")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name, contextlib.ExitStack() as stack:
        scratch = Path(name)
        ours = stack.enter_context(our_daemon(options.model, scratch))
        peer = stack.enter_context(
            peer_server(options.peer, options.model, scratch, ["--embeddings", "--pooling", "mean"])
        )
        for n_requests in (1, _REQUESTS):
            mine, theirs, least = [], [], 1.0
            for pair in range(-1, options.pairs):
                texts = [
                    filler(1000 * (pair + 2) * n_requests + index, options.words)
                    for index in range(options.texts)
                ]
                found = {
                    side.name: timed(side, texts, n_requests)
                    for side in ((ours, peer) if pair % 2 else (peer, ours))
                }
                vectors = found[ours.name][1], found[peer.name][1]
                norms = np.prod([np.linalg.norm(one, axis=1) for one in vectors], axis=0)
                least = min(least, float(np.min((vectors[0] * vectors[1]).sum(axis=1) / norms)))
                if pair >= 0:
                    mine.append(found[ours.name][0])
                    theirs.append(found[peer.name][0])
            print(f"{options.texts} texts in {n_requests} requests, s:", medians(mine, theirs))
            print(f"  per second: {options.texts / statistics.median(mine):.0f}; least cosine {least:.6f}")


if __name__ == "__main__":
    main()
