"""`python -m runner.worker.probe --channel-fd N --parent-pid P`: what would a load take? One question.

Started by `actors/process.py` like a worker, and trusted as little: the file it is asked about may be
hostile. It neither loads weights nor runs them.

Imports `runner.wire`, this package, and the engine once it is asked. Read on in
`runner/engine/llama_memory.py`.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from pathlib import Path

from runner.worker.birth import read_arguments, settle_descriptors, settle_process, tie_to

_USAGE = "usage: python -m runner.worker.probe --channel-fd N --parent-pid P\n"
_EXIT_USAGE = 2
_EXIT_ERROR = 1
_EXIT_NO_QUESTION = 3
_RECEIVE_BYTES = 64 * 1024


def main(arguments: list[str]) -> int:
    """The exit code; 0 also when the answer is that the model cannot be loaded."""
    numbers = read_arguments(arguments)
    if numbers is None:
        sys.stderr.write(_USAGE)
        return _EXIT_USAGE
    channel_fd, parent_pid = numbers
    tie_to(parent_pid)
    settle_process()
    settle_descriptors()

    from runner.worker.channel import adopt

    with adopt(channel_fd) as channel:
        return _answer(channel)


def _answer(channel: socket.socket) -> int:
    from runner.errors import RunnerError
    from runner.wire.codec import ToProbeDecoder, encode
    from runner.wire.messages import FromProbe, LoadFailed, Probed, ProbeModel

    question: ProbeModel | None = None
    decoder = ToProbeDecoder()
    while question is None:
        data = channel.recv(_RECEIVE_BYTES)
        if not data:
            return _EXIT_NO_QUESTION
        question = next(iter(decoder.feed(data)), None)

    from runner.engine.llama_loading import engine_version
    from runner.engine.llama_memory import measure

    answer: FromProbe
    try:
        path, *further_parts = map(Path, question.weights_paths)
        sizes = measure(path, question.options, further_parts=tuple(further_parts))
        answer = Probed(engine_version=engine_version(), sizes=sizes)
    except RunnerError as error:
        answer = LoadFailed(code=error.code, message=str(error))
    channel.sendall(encode(answer))
    return 0


if __name__ == "__main__":
    code = _EXIT_ERROR
    try:
        code = main(sys.argv[1:])
    except BaseException:  # who started us reads the last lines of this log
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)  # the library's own end would free what the kernel frees faster
