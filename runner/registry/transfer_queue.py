"""How many transfers run at once, and who is next. Pure: entries come and go, grants come back."""

from __future__ import annotations

from collections.abc import Hashable


class TransferQueue:
    """So many keys may run at once; entries of one key share its place. First come, first served."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._running: dict[Hashable, set[int]] = {}
        self._waiting: dict[Hashable, list[int]] = {}  # keys in the order in which they came

    def enter(self, entry_id: int, key: Hashable) -> bool:
        """Whether the entry may run now: its key runs already, or a slot is free. Else it waits."""
        if key in self._running or len(self._running) < self._slots:
            self._running.setdefault(key, set()).add(entry_id)
            return True
        self._waiting.setdefault(key, []).append(entry_id)
        return False

    def leave(self, entry_id: int, key: Hashable) -> tuple[int, ...]:
        """The entry has ended or waits no longer; which may run now. Leaving twice changes nothing."""
        if entry_id in self._waiting.get(key, ()):
            self._waiting[key].remove(entry_id)
            if not self._waiting[key]:
                del self._waiting[key]
            return ()
        self._running.get(key, set()).discard(entry_id)
        if not self._running.get(key):
            self._running.pop(key, None)
        return self._grant()

    def position(self, key: Hashable) -> int | None:
        """1 for the key that is next; None for one that does not wait."""
        return next((index for index, each in enumerate(self._waiting, 1) if each == key), None)

    def _grant(self) -> tuple[int, ...]:
        granted: list[int] = []
        while self._waiting and len(self._running) < self._slots:
            key = next(iter(self._waiting))
            entries = self._waiting.pop(key)
            self._running[key] = set(entries)
            granted += entries
        return tuple(granted)

    def __repr__(self) -> str:
        return f"<TransferQueue {len(self._running)} running, {len(self._waiting)} waiting>"
