"""A child process that loads files with the real engine, so that its death can be seen and survived.

`python -m tests.fuzz.engine` is that child: one path per line on stdin, one verdict per line on stdout.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_TEXT = "The cat, and é 中\n\x00\U0001f600<|im_start|>"


_HANG_S = 20


class EngineDied(Exception):
    """The engine ended its process over a file, or never came back."""


class EngineChild:
    """Starts the child when needed, and again after it died."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._directory = tempfile.TemporaryDirectory()

    def survives(self, data: bytes) -> bool:
        """True when the engine loaded and ran the file, False when it refused it; EngineDied otherwise."""
        path = Path(self._directory.name) / "mutant.gguf"
        path.write_bytes(data)
        child = self._running()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{path}\n")
        child.stdin.flush()
        readable, _, _ = select.select([child.stdout], [], [], _HANG_S)
        verdict = child.stdout.readline().strip() if readable else ""
        if verdict:
            return verdict == "ran"
        if not readable:
            child.kill()
        self._child = None
        code = child.wait()
        child.stdin.close()
        child.stdout.close()
        if not readable:
            raise EngineDied(f"after hanging for {_HANG_S} s")
        raise EngineDied(f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}")

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.communicate()
        self._directory.cleanup()

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.engine"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self._child


def run_file(path: str) -> bool:
    """Load, tokenise, turn every token back into text, decode a few tokens. False when the engine refuses."""
    import llama_cpp.llama_cpp as llama

    model_options = llama.llama_model_default_params()
    model_options.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(os.fsencode(path), model_options)
    if not model:
        return False
    context_options = llama.llama_context_default_params()
    context_options.n_ctx = 256
    context_options.n_threads = context_options.n_threads_batch = 1
    context = llama.llama_init_from_model(model, context_options)
    if not context:
        llama.llama_model_free(model)
        return False
    try:
        return _run_text(llama, model, context)
    finally:
        llama.llama_free(context)
        llama.llama_model_free(model)


def _run_text(llama: Any, model: Any, context: Any) -> bool:
    vocabulary = llama.llama_model_get_vocab(model)
    raw = _TEXT.encode()
    tokens = (llama.llama_token * 200)()
    n_tokens = llama.llama_tokenize(vocabulary, raw, len(raw), tokens, 200, True, True)
    piece = bytes(256)
    for token in range(min(llama.llama_vocab_n_tokens(vocabulary), 5000)):
        llama.llama_token_to_piece(vocabulary, token, piece, len(piece), 0, True)
    if n_tokens <= 0:
        return False
    return bool(llama.llama_decode(context, llama.llama_batch_get_one(tokens, n_tokens)) == 0)


def main() -> None:
    verdicts = os.fdopen(os.dup(1), "w")  # the engine may print to stdout
    os.dup2(2, 1)
    for line in sys.stdin:
        verdict = "ran" if run_file(line.strip()) else "refused"
        print(verdict, file=verdicts, flush=True)


if __name__ == "__main__":
    main()
