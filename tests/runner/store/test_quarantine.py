"""The file of models in quarantine: strict, whole, private."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import attrs
import pytest

from runner.domain.quarantine import FailedLoads
from runner.errors import StoreDamaged, StoreError
from runner.oci.digest import Digest
from runner.store.quarantine import BYTES_MAX, QuarantineFile

RECORD = FailedLoads(
    model_id=str(Digest.of(b"bad")), model="ai/bad", engine="llama 1", crashes=2, cause="signal SIGSEGV"
)


def document(**changes: object) -> bytes:
    return json.dumps({"version": 1, "models": [attrs.asdict(RECORD) | changes]}).encode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "partial").mkdir()
    return tmp_path


def test_nothing_is_known_at_first(root: Path) -> None:
    assert QuarantineFile(root).read() == ()


def test_L06_what_was_written_is_read_back(root: Path) -> None:
    QuarantineFile(root).write((RECORD,))
    assert QuarantineFile(root).read() == (RECORD,)
    QuarantineFile(root).write(())
    assert QuarantineFile(root).read() == ()


def test_K03_the_file_is_private_and_nothing_is_left_beside_it(root: Path) -> None:
    QuarantineFile(root).write((RECORD,))
    assert stat.S_IMODE((root / "quarantine.json").stat().st_mode) == 0o600
    assert sorted(path.name for path in root.rglob("*")) == ["partial", "quarantine.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "models": []}',
        b'{"version": 1, "models": [1]}',
        b'{"version": 1, "models": [{}]}',
        document(crashes="2"),
        document(crashes=True),
        document(crashes=0),
        document(cause=None),
        document(cause="x" * 1001),
        document(more="x"),
        b"x" * (BYTES_MAX + 1),
    ],
)
def test_L14_anything_else_is_damage_and_says_so(root: Path, content: bytes) -> None:
    (root / "quarantine.json").write_bytes(content)
    with pytest.raises(StoreDamaged):
        QuarantineFile(root).read()


def test_a_document_that_a_person_wrote_the_same_way_is_read(root: Path) -> None:
    (root / "quarantine.json").write_bytes(document())
    assert QuarantineFile(root).read() == (RECORD,)


def test_a_write_that_fails_leaves_what_was_there(root: Path) -> None:
    QuarantineFile(root).write((RECORD,))
    (root / "partial").rmdir()
    with pytest.raises(StoreError):
        QuarantineFile(root).write(())
    assert QuarantineFile(root).read() == (RECORD,)
