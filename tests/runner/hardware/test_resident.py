"""Memory of a process as the kernel counts it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from runner.hardware.resident import anonymous_bytes, proportional_bytes

MIB = 1024**2


@pytest.mark.parametrize("look", [anonymous_bytes, proportional_bytes])
def test_memory_counts_when_it_is_touched(look) -> None:
    before = look()
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        assert look() - before < 16 * MIB
        for offset in range(0, 64 * MIB, 4096):
            memory[offset] = 1
        assert 60 * MIB < look() - before < 80 * MIB
    assert look(os.getpid()) == pytest.approx(look(), abs=8 * MIB)


def test_only_anonymous_memory_leaves_files_out(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(32 * MIB))
    before = anonymous_bytes(), proportional_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[offset] for offset in range(0, 32 * MIB, 4096)) == 0
        grown = anonymous_bytes() - before[0], proportional_bytes() - before[1]
    assert grown[0] < 8 * MIB
    assert grown[1] > 24 * MIB


@pytest.mark.parametrize("look", [anonymous_bytes, proportional_bytes])
def test_a_process_that_is_gone_has_none_to_tell(look, tmp_path: Path) -> None:
    assert look(2**22 + 1) is None
    assert look(proc=tmp_path) is None


@pytest.mark.parametrize("text", ["", "RssAnon:\n", "RssAnon: much kB\n", "Rss: 5 kB\n", "\0\xff"])
def test_what_cannot_be_read_is_not_known(text: str, tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(text)
    assert anonymous_bytes(proc=tmp_path) is None
