"""A probe that does what its first argument says, instead of measuring.

scripted_probe.py BEHAVIOUR --channel-fd N --parent-pid P
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

import attrs

from runner.domain.engine import DeviceBuffers, EngineSizes
from runner.wire.codec import ToProbeDecoder, encode
from runner.wire.messages import Hello, LoadFailed, Probed, ProbeModel

MIB = 2**20
HONEST = DeviceBuffers(
    device="cpu", weights_bytes=90 * MIB, kv_cache_bytes=40 * MIB, compute_bytes=5 * MIB, output_bytes=MIB
)


def answer(host: DeviceBuffers = HONEST) -> bytes:
    return encode(Probed(engine_version="scripted", sizes=EngineSizes(devices=(host,), process_bytes=MIB)))


def main() -> None:
    behaviour, channel = sys.argv[1], socket.socket(fileno=int(sys.argv[3]))
    decoder = ToProbeDecoder()
    questions: list[ProbeModel] = []
    while not questions:
        questions = decoder.feed(channel.recv(65_536))
    print("asked", flush=True)
    match behaviour:
        case "honest":
            channel.sendall(answer())
        case "cells":  # tells how many it was asked about
            host = attrs.evolve(HONEST, kv_cache_bytes=questions[0].options.n_cells * 1000)
            channel.sendall(answer(host))
        case "in-pieces":
            for byte in answer():
                channel.sendall(bytes([byte]))
        case "lying":
            channel.sendall(answer(attrs.evolve(HONEST, weights_bytes=0)))
        case "failing":
            channel.sendall(encode(LoadFailed(code="loading_failed", message="cannot\x1b[2J be loaded")))
        case "twice":
            channel.sendall(answer() + answer())
        case "trailing":
            channel.sendall(answer() + b"\0\0")
        case "greeting":
            channel.sendall(encode(Hello(protocol_version=1, pid=5)))
        case "garbage":
            channel.sendall(b"\xff" * 100)
        case "huge":
            channel.sendall((2**30).to_bytes(4, "big"))
            time.sleep(60)
        case "cut":
            channel.sendall(answer()[:-1])
        case "silent":
            time.sleep(60)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        case "closing":
            channel.close()
            time.sleep(60)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "raising":
            raise RuntimeError("a fault")
        case "hoarding":
            channel.sendall(answer()[: len(bytearray(5 * 1024**3))])
        case "noisy":
            sys.stderr.write("noise\n" * 100_000)
            channel.sendall(answer())


if __name__ == "__main__":
    main()
