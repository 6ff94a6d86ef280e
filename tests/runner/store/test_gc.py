"""What nothing refers to any more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.oci.digest import Digest
from runner.store.disk import FileFacts
from runner.store.gc import LEFTOVER_AGE_S, leftovers, reachable
from tests.support import models

NOW_S = 1_000_000_000.0
DIGESTS = [Digest.of(b"%d" % number) for number in range(5)]


def aged(age_s: float) -> FileFacts:
    return FileFacts(size_bytes=1, modified_s=NOW_S - age_s, file_id=1)


@pytest.mark.parametrize(("beyond_s", "goes"), [(-1, False), (0, False), (1, True)])
def test_S26_a_leftover_goes_after_7_days(beyond_s, goes):
    blobs = {DIGESTS[0]: aged(LEFTOVER_AGE_S + beyond_s)}
    assert list(leftovers(blobs, frozenset(), now_s=NOW_S)) == ([DIGESTS[0]] if goes else [])


@given(st.dictionaries(st.sampled_from(DIGESTS), st.floats(-1e9, 1e9)), st.sets(st.sampled_from(DIGESTS)))
def test_S26_what_is_needed_never_goes(ages_s, needed):
    blobs = {digest: aged(age_s) for digest, age_s in ages_s.items()}
    gone = set(leftovers(blobs, needed, now_s=NOW_S))
    assert gone.isdisjoint(needed)
    assert gone <= blobs.keys()


def test_everything_a_manifest_names_is_reachable(tmp_path):
    with models.opened(tmp_path / "store") as store:
        assert reachable(store.catalog) == frozenset()
        weights = models.tiny_gguf()
        model_id = models.publish(store, "a", weights, models.LICENSE)
        models.put_blob(store, b"left over")
        config = store.catalog.usable(model_id).manifest.config.digest
        assert reachable(store.catalog) == {
            model_id, config, Digest.of(weights), Digest.of(models.LICENSE),
        }  # fmt: skip


def test_what_a_missing_part_belongs_to_is_known_and_what_a_missing_manifest_names_is_not(tmp_path):
    with models.opened(tmp_path / "store") as store:
        weights = models.tiny_gguf()
        model_id = models.publish(store, "a", weights)
        store.directory.blobs.path(Digest.of(weights)).unlink()
        assert Digest.of(weights) in reachable(store.directory.load().catalog)
        store.directory.blobs.path(model_id).unlink()
        assert reachable(store.directory.load().catalog) is None
