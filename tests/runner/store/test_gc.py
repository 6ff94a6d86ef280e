"""What nothing refers to any more."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.oci.digest import Digest
from runner.store.gc import LEFTOVER_AGE_S, GarbageRules, leftovers, reachable
from tests.support import models

NOW_S = 1_000_000_000.0
DIGESTS = [Digest.of(b"%d" % number) for number in range(5)]


RULES = GarbageRules(now_s=NOW_S)


@pytest.mark.parametrize(("beyond_s", "goes"), [(-1, False), (0, False), (1, True)])
def test_S26_a_leftover_goes_after_7_days(beyond_s, goes):
    modified_s = NOW_S - LEFTOVER_AGE_S - beyond_s
    assert RULES.may_go(DIGESTS[0], modified_s) == goes
    waiting = attrs.evolve(RULES, older_than_s=-1.0, waiting={DIGESTS[0]})
    assert waiting.may_go(DIGESTS[0], modified_s) == goes


def test_S26_a_young_leftover_goes_when_it_was_abandoned_or_age_does_not_count():
    assert not RULES.may_go(DIGESTS[0], NOW_S)
    assert attrs.evolve(RULES, abandoned={DIGESTS[0]}).may_go(DIGESTS[0], NOW_S)
    assert attrs.evolve(RULES, older_than_s=-1.0).may_go(DIGESTS[0], NOW_S)


@given(st.floats(-1e9, 1e9), st.booleans(), st.floats(-1e9, 1e9))
def test_S26_what_is_held_never_goes(age_s, is_abandoned, older_than_s):
    held = frozenset({DIGESTS[0]})
    abandoned = held if is_abandoned else frozenset()
    rules = attrs.evolve(RULES, held=held, abandoned=abandoned, older_than_s=older_than_s)
    assert not rules.may_go(DIGESTS[0], NOW_S - age_s)


@given(st.sets(st.sampled_from(DIGESTS)), st.sets(st.sampled_from(DIGESTS)))
def test_S26_what_is_needed_is_no_leftover(blobs, needed):
    assert set(leftovers(blobs, needed)) == blobs - needed


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
