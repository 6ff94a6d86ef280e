"""Pins, leases and kept uploads."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.leases import KEPT_UPLOADS_MAX, KeptUploads, Pins, StoreLease
from runner.domain.model import Model, ModelFiles
from runner.oci.digest import Digest

DIGEST = Digest.of(b"model")
MODEL = Model(
    id=DIGEST,
    tags=(),
    created_s=0,
    size_bytes=1,
    format="gguf",
    architecture="",
    quantization="",
    parameters="",
)
FILES = ModelFiles(model=MODEL, weights=(Path("x"),), weights_bytes=1, kv_bytes_per_cell=1)


def lease_on(pins):
    pins.add(DIGEST)
    return StoreLease(FILES, pins)


def test_a_model_is_pinned_until_its_last_lease_is_released():
    pins = Pins()
    first, second = lease_on(pins), lease_on(pins)
    assert repr(pins) == "<Pins 2 leases on 1 models, 0 blobs held>"
    first.release()
    assert pins.is_pinned(DIGEST)
    second.release()
    assert not pins.is_pinned(DIGEST)


def test_who_only_looks_at_a_model_hinders_nobody_and_is_told_when_it_goes():
    pins, told = Pins(), []
    with pins.visiting(DIGEST, lambda: told.append(1)):
        with pins.visiting(DIGEST, lambda: told.append(2)):
            assert not pins.is_pinned(DIGEST)
            pins.send_away(Digest.of(b"another"))
            pins.send_away(DIGEST)
            assert told == [1, 2]
        pins.send_away(DIGEST)
    pins.send_away(DIGEST)
    assert told == [1, 2, 1]


def test_releasing_twice_is_releasing_once():
    pins = Pins()
    first, second = lease_on(pins), lease_on(pins)
    first.release()
    first.release()
    assert pins.is_pinned(DIGEST)
    assert "released" in repr(first)
    assert "held" in repr(second)


def test_a_lease_releases_at_the_end_of_its_block_also_by_an_error():
    pins = Pins()
    with pytest.raises(KeyError), lease_on(pins):
        raise KeyError
    assert not pins.is_pinned(DIGEST)


def test_uploads_are_kept_until_they_are_used_and_the_oldest_give_way():
    kept = KeptUploads()
    digests = [Digest.of(b"%d" % number) for number in range(KEPT_UPLOADS_MAX + 1)]
    for digest in digests[:-1]:
        kept.add(digest)
    kept.add(digests[0])  # again: it is the youngest now
    assert len(kept.digests()) == KEPT_UPLOADS_MAX
    kept.add(digests[-1])
    assert len(kept.digests()) == KEPT_UPLOADS_MAX
    assert digests[1] not in kept.digests()
    assert digests[0] in kept.digests()
    kept.discard(digests[0])
    kept.discard(digests[0])
    assert digests[0] not in kept.digests()


def test_what_was_abandoned_waits_no_more_until_it_is_uploaded_again():
    kept, digest, other = KeptUploads(), Digest.of(b"1"), Digest.of(b"2")
    kept.add(digest)
    kept.abandon(digest)
    kept.abandon(other)  # packaged meanwhile, or never uploaded
    assert (kept.digests(), kept.abandoned()) == (frozenset(), {digest})
    kept.add(digest)
    assert (kept.digests(), kept.abandoned()) == ({digest}, frozenset())


def test_S26_content_is_held_until_the_last_operation_that_needs_it_ends():
    pins, digest = Pins(), Digest.of(b"1")
    with pins.holding([digest, digest]):
        with pins.holding(iter([digest])):
            assert pins.held() == {digest}
        assert pins.held() == {digest}
    assert pins.held() == frozenset()
