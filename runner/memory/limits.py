"""How much private memory a worker may take: what its model was found to need, and room for the rest.

Pure. Imports `runner.memory.footprint`. Read on in `actors/memory_limits.py`, which sets it.
"""

from __future__ import annotations

from typing import Final

from runner.memory.footprint import HOST, Basis, Footprint

HEADROOM_BYTES: Final = 1024**3
"""Beyond the footprint, which counts memory that is used: the limit counts what was asked for. That is 83 to
88 MiB more for SmolLM2 and Gemma 3, at contexts of 2k and 8k, with two threads: stacks, and heaps that grow
in pieces. A template may take 512 MiB for as long as it runs (`runner/worker/limits.py`), and each further
thread 8 MiB for its stack."""


def private_limit_bytes(footprint: Footprint) -> int | None:
    """The cap of a worker with this footprint; None where none can be set.

    1. Memory of other devices is mapped by their drivers in ways that nobody here has measured: no cap.
    2. A footprint by the header does not know what the engine copies of the weights: maybe all of them.
    3. Otherwise what is private by the engine's own word, a context for embeddings included.
    """
    if any(buffers.device != HOST for buffers in footprint.devices):  # 1
        return None
    copied_bytes = footprint.weights_bytes if footprint.basis is Basis.HEADER else 0  # 2
    return footprint.private_bytes + footprint.annex_host_bytes + copied_bytes + HEADROOM_BYTES  # 3
