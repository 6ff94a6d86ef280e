"""Cells of llama.cpp's unified cache: shared, dropped, and kept from being overwritten.

Where layers see only a window of the past, the library takes a cell that its sequence has left behind for
somebody else's token, also while others are empty (`llama_kv_cache::find_slot`), and says nothing: a later
copy "succeeds", and results are wrong. It spares cells that two sequences have. So every sequence id of ours
has a second one, its guard, which has the same cells: what `swa_full` pays for stays there to be used again.

Imports `llama_cpp`, its low-level bindings only. Used by `llama.py`.
"""

from __future__ import annotations

import ctypes

from llama_cpp import llama_cpp as lib

from runner.engine.backend import BatchArrays
from runner.engine.llama_loading import Context


class LlamaCells:
    """`guard_offset` is what an id's guard has more than the id; 0 where there is no `window`, in tokens."""

    def __init__(self, context: Context, *, guard_offset: int, window: int) -> None:
        self._context = context
        self._memory = lib.llama_get_memory(context)
        self._guard_offset = guard_offset
        self.window = window

    def guard(self, batch: BatchArrays, n_rows: int) -> None:
        """After a pass of these rows, before the library looks for room again."""
        if not self._guard_offset:
            return
        spans: dict[int, tuple[int, int]] = {}
        ids, positions = batch.sequence_ids[:n_rows].tolist(), batch.positions[:n_rows].tolist()
        for sequence_id, position in zip(ids, positions, strict=True):  # positions ascend in a sequence
            first, _ = spans.get(sequence_id, (position, position))
            spans[sequence_id] = first, position
        for sequence_id, (first, last) in spans.items():
            guard_id = sequence_id + self._guard_offset
            lib.llama_memory_seq_cp(self._memory, sequence_id, guard_id, first, last + 1)

    def copy(self, source_id: int, target_id: int, count: int) -> bool:
        """See `Backend.copy_cells`."""
        targets = (target_id, target_id + self._guard_offset) if self._guard_offset else (target_id,)
        for each in targets:
            lib.llama_memory_seq_cp(self._memory, source_id, each, 0, count)
        if not self._guard_offset:
            return True
        first = lib.llama_memory_seq_pos_min(self._memory, target_id)
        if 0 <= first <= max(0, count - self.window):
            return True
        self.drop(target_id, 0)
        return False

    def share_beginning(self, source_id: int, target_id: int, count: int) -> None:
        """See `Backend.share_beginning`; there is no window."""
        lib.llama_memory_seq_rm(self._memory, target_id, 0, count)
        lib.llama_memory_seq_cp(self._memory, source_id, target_id, 0, count)

    def drop(self, sequence_id: int, from_position: int) -> bool:
        """See `Backend.drop_cells`."""
        if self._guard_offset:
            guard_id = sequence_id + self._guard_offset
            lib.llama_memory_seq_rm(self._memory, guard_id, from_position, -1)
        return bool(lib.llama_memory_seq_rm(self._memory, sequence_id, from_position, -1))

    # states

    def state_bytes(self, sequence_id: int) -> int:
        """See `Backend.state_bytes`."""
        return int(lib.llama_state_seq_get_size(self._context, sequence_id))

    def save(self, sequence_id: int, room: memoryview) -> bool:
        """See `Backend.save_state`."""
        buffer = (ctypes.c_uint8 * len(room)).from_buffer(room)
        n_written = lib.llama_state_seq_get_data(self._context, buffer, len(room), sequence_id)
        return bool(n_written == len(room))

    def restore(self, sequence_id: int, state: memoryview, count: int) -> bool:
        """See `Backend.restore_state`. The library checks that layers, types and sizes are its own, and takes
        nothing else; how many tokens it took is looked up here."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
        n_read = lib.llama_state_seq_set_data(self._context, buffer, len(state), sequence_id)
        last = lib.llama_memory_seq_pos_max(self._memory, sequence_id)
        if n_read != len(state) or last != count - 1:
            self.drop(sequence_id, 0)
            return False
        if self._guard_offset:
            guard_id = sequence_id + self._guard_offset
            lib.llama_memory_seq_cp(self._memory, sequence_id, guard_id, 0, count)
        return True
