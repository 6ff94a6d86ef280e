"""Reading content again."""

from __future__ import annotations

import pytest

from runner.errors import StoreDamaged
from runner.oci.manifest import Descriptor
from runner.store.pieces import PIECE_BYTES
from runner.store.verify import BlobCheck, bad_ranges, require_good
from tests.support import models

CONTENT = b"0123456789" * (PIECE_BYTES // 10) + b"the second piece"
DESCRIPTOR = Descriptor.of(CONTENT, "any")


@pytest.fixture
def blobs(tmp_path):
    with models.opened(tmp_path / "store") as store:
        store.directory.blobs.put(CONTENT)
        yield store.directory.blobs


def damage(blobs, offset: int) -> None:
    path = blobs.path(DESCRIPTOR.digest)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"!")


def test_sound_content_is_read_step_by_step_and_has_no_finding(blobs):
    with BlobCheck(blobs, DESCRIPTOR) as check:
        steps = 0
        while check.step(1 << 20):
            steps += 1
            assert check.done_bytes == min(steps << 20, len(CONTENT))
        assert not check.step()
    assert steps == len(CONTENT) >> 20
    assert check.finding is None


@pytest.mark.parametrize(
    ("offset", "bad"),
    [(0, (0, PIECE_BYTES)), (PIECE_BYTES - 1, (0, PIECE_BYTES)), (PIECE_BYTES, (PIECE_BYTES, len(CONTENT)))],
)
def test_S24_a_wrong_byte_is_found_and_its_piece_named(blobs, offset, bad):
    damage(blobs, offset)
    finding = BlobCheck(blobs, DESCRIPTOR).run()
    assert (finding.kind, finding.bad_ranges) == ("wrong_content", (bad,))
    assert finding.digest in finding.message
    with pytest.raises(StoreDamaged, match=DESCRIPTOR.digest.hex):
        require_good(blobs, [DESCRIPTOR])


def test_S24_without_checksums_all_of_it_is_bad(blobs, tmp_path):
    damage(blobs, 0)
    (tmp_path / "store" / "pieces" / DESCRIPTOR.digest.hex).unlink()
    assert BlobCheck(blobs, DESCRIPTOR).run().bad_ranges is None


def test_a_file_that_cannot_be_read_is_a_finding(blobs, monkeypatch):
    check = BlobCheck(blobs, DESCRIPTOR)
    assert check.step(1)

    class BadSector:
        def readinto(self, buffer):
            raise OSError(5, "Input/output error")

        def close(self):
            pass

    check.close()
    check._file = BadSector()
    assert not check.step()
    assert (check.finding.kind, check.finding.bad_ranges) == ("unreadable", None)
    check.close()


def test_a_file_that_vanishes_before_it_is_opened_is_a_finding(blobs, monkeypatch):
    monkeypatch.setattr(blobs, "open", lambda digest: (_ for _ in ()).throw(StoreDamaged("gone")))
    assert BlobCheck(blobs, DESCRIPTOR).run().kind == "foreign"


@pytest.mark.parametrize(
    ("expected", "found", "bad"),
    [
        ((1, 2), (1, 3), ((PIECE_BYTES, len(CONTENT)),)),
        ((1, 2), (3, 4), ((0, len(CONTENT)),)),
        ((1, 2), (1, 2), None),  # the checksums are of the wrong content too
        ((1,), (1, 2), None),
    ],
)
def test_bad_pieces_that_touch_are_one_range(expected, found, bad):
    assert bad_ranges(expected, found, len(CONTENT)) == bad


def test_content_of_which_nothing_is_known_is_read_once(blobs, tmp_path, monkeypatch):
    (tmp_path / "store" / "pieces" / DESCRIPTOR.digest.hex).unlink()
    blobs.known._good.clear()
    require_good(blobs, [DESCRIPTOR])
    monkeypatch.setattr(blobs, "open", lambda digest: pytest.fail("it is known"))
    require_good(blobs, [DESCRIPTOR])
