"""The tiny model is one that our checks and the real engine accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.gguf.metadata import read_metadata
from scripts.tiny_gguf import MARKERS, MERGES, TinyModel, byte_letters, main, write_tiny_gguf
from tests.fuzz.engine import EngineChild


def test_the_file_says_what_was_asked_for(tmp_path: Path) -> None:
    model = TinyModel(name="Small", n_layers=3, n_embedding=96, n_heads=6, n_heads_kv=3, context_length=1024)
    metadata = read_metadata(write_tiny_gguf(tmp_path / "tiny.gguf", model))
    assert (metadata.name, metadata.architecture, metadata.quantization) == ("Small", "llama", "MOSTLY_F32")
    assert (metadata.block_count, metadata.embedding_length, metadata.context_length) == (3, 96, 1024)
    assert (metadata.head_counts, metadata.head_counts_kv) == ((6,) * 3, (3,) * 3)
    assert metadata.vocab_size == 256 + len(MERGES) + len(MARKERS)
    assert metadata.kv_bytes_per_cell() == 3 * 3 * (16 + 16) * 2
    assert metadata.chat_template is not None


def test_a_model_without_template_can_be_written(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", TinyModel(chat_template=None))
    assert read_metadata(path).chat_template is None


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        write_tiny_gguf(tmp_path / name, TinyModel(seed=seed)).read_bytes()
        for name, seed in (("a.gguf", 7), ("b.gguf", 7), ("c.gguf", 8))
    )
    assert first == again != other
    assert len(first) < 500_000


def test_matrices_can_be_quantized(tmp_path: Path) -> None:
    plain = write_tiny_gguf(tmp_path / "plain.gguf")
    small = write_tiny_gguf(tmp_path / "small.gguf", TinyModel(is_quantized=True))
    assert read_metadata(small).quantization == "MOSTLY_Q4_0"
    assert read_metadata(small).tensor_bytes < read_metadata(plain).tensor_bytes / 6


def test_bytes_have_256_letters() -> None:
    letters = byte_letters()
    assert len(set(letters)) == 256
    assert (letters[ord("a")], letters[ord(" ")], letters[ord("\n")]) == ("a", "Ġ", "Ċ")
    assert all(len(letter) == 1 and letter.isprintable() for letter in letters)


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.gguf"
    main([str(path), "--layers", "1", "--context", "128", "--seed", "3"])
    assert capsys.readouterr().out == f"{path}: {path.stat().st_size} bytes\n"
    assert read_metadata(path).block_count == 1


def test_the_engine_runs_it(tmp_path: Path) -> None:
    engine = EngineChild()
    try:
        assert engine.survives(write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes())
    finally:
        engine.close()
