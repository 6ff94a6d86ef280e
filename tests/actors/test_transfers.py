"""Boards, feeds and the list of all transfers, on a virtual clock."""

from __future__ import annotations

import pytest
import trio

from actors.transfers import NOTES_MAX, TransferBoard, TransferFeed, TransferLedger, interrupted
from runner.domain.transfer import TransferDirection, TransferPhase, TransferProgress, TransferResult
from runner.errors import RegistryDenied, Unavailable
from runner.oci.digest import Digest

pytestmark = pytest.mark.anyio

RESULT = TransferResult(
    model_id=Digest.of(b"model"), reference="ai/tiny", size_bytes=10, transferred_bytes=10, was_cached=False
)


def board() -> TransferBoard:
    return TransferBoard(reference="ai/tiny", direction=TransferDirection.PULL, started_s=0.0)


def progress(done_bytes: int) -> TransferProgress:
    return TransferProgress(
        direction=TransferDirection.PULL,
        phase=TransferPhase.TRANSFERRING,
        total_bytes=10,
        done_bytes=done_bytes,
    )


class Joined:
    """A feed of a board, and how often it was left."""

    def __init__(self, shown: TransferBoard | Exception) -> None:
        self.left = 0
        self._shown = shown
        self.feed = TransferFeed(self._join, self._leave)

    async def _join(self) -> TransferBoard:
        await trio.lowlevel.checkpoint()
        if isinstance(self._shown, Exception):
            raise self._shown
        return self._shown

    def _leave(self) -> None:
        self.left += 1


async def test_a_feed_tells_the_newest_and_ends_with_the_transfer(virtual_clock):
    shown = board()
    joined = Joined(shown)
    async with joined.feed as feed:
        assert (await anext(feed)).phase is TransferPhase.RESOLVING
        for done_bytes in range(5):
            shown.show(progress(done_bytes))
        assert (await anext(feed)).done_bytes == 4
        shown.show(progress(9))
        shown.finish(RESULT)
        assert [each async for each in feed] == []
        assert feed.result() == RESULT
    assert joined.left == 1


async def test_a_feed_waits_until_something_changes(virtual_clock):
    shown = board()
    async with Joined(shown).feed as feed:
        await anext(feed)
        with trio.move_on_after(10) as scope:
            await anext(feed)
        assert scope.cancelled_caught
        shown.show(shown.progress)
        with trio.move_on_after(10) as scope:
            await anext(feed)
        assert scope.cancelled_caught


async def test_an_error_is_the_result_and_the_first_end_counts(virtual_clock):
    shown = board()
    async with Joined(shown).feed as feed:
        shown.fail(RegistryDenied("r.example", "no"))
        shown.finish(RESULT)
        shown.fail(interrupted())
        shown.show(progress(3))
        assert [each async for each in feed] == []
        with pytest.raises(RegistryDenied):
            feed.result()


async def test_one_who_could_not_join_has_left(virtual_clock):
    joined = Joined(Unavailable("gone"))
    with pytest.raises(Unavailable):
        async with joined.feed:
            pytest.fail("nobody should get here")
    assert joined.left == 1


async def test_a_feed_is_used_within_its_context(virtual_clock):
    with pytest.raises(RuntimeError, match="context"):
        Joined(board()).feed.result()
    async with Joined(board()).feed as feed:
        with pytest.raises(RuntimeError, match="not ended"):
            feed.result()


def test_O08_notes_are_told_once_and_the_oldest_give_way():
    shown = board()
    for number in range(NOTES_MAX + 3):
        shown.note(f"note {number}")
        shown.note(f"note {number}")
    assert shown.progress.notes == tuple(f"note {number}" for number in range(3, NOTES_MAX + 3))
    shown.show(progress(1))
    assert len(shown.progress.notes) == NOTES_MAX


def test_the_list_holds_what_goes_on_in_order():
    ledger, first, second = TransferLedger(), board(), board()
    ledger.add(1, first)
    ledger.add(2, second)
    first.model_id, first.waiters = "sha256:1", 3
    assert [status.model_id for status in ledger.status(7.0)] == ["sha256:1", ""]
    assert ledger.status(7.0)[0].waiters == 3
    assert ledger.status(7.0)[0].started_ago_s == 7.0
    first.finish(RESULT)
    assert len(ledger.status(7.0)) == 1
    ledger.drop(2)
    ledger.drop(2)
    assert ledger.status(7.0) == ()
    ledger.clear()
