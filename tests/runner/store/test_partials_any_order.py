"""A download against a model of it, through any sequence of writes, checkpoints, ends and resumptions."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from runner.oci.manifest import Descriptor
from runner.store.blobs import BlobStore
from runner.store.disk import Disk
from runner.store.layout import StoreLayout

CONTENT = random.Random(3).randbytes(600)
DESCRIPTOR = Descriptor.of(CONTENT, "any")
offsets = st.integers(0, len(CONTENT))


class Download(RuleBasedStateMachine):
    """`written` and `safe` are the bytes that must be there now, and after an end at this moment."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.layout = StoreLayout(self.root)
        for path in self.layout.directories():
            path.mkdir(mode=0o700)
        self.written: set[int] = set()
        self.safe: set[int] = set()
        self.resume()

    def resume(self) -> None:
        self.partial = BlobStore(self.layout, Disk()).begin_partial(DESCRIPTOR)

    @rule(start=offsets, end=offsets)
    def write(self, start: int, end: int) -> None:
        self.partial.write_at(start, CONTENT[start:end])
        self.written |= set(range(start, end))

    @rule(start=offsets, end=offsets)
    def write_something_else_over_it(self, start: int, end: int) -> None:
        """Only where bytes are there already: they stay."""
        if set(range(start, end)) <= self.written:
            self.partial.write_at(start, bytes(max(0, end - start)))

    @rule()
    def checkpoint(self) -> None:
        self.partial.checkpoint()
        self.safe = set(self.written)

    @rule(limit_bytes=offsets)
    def hash_forward(self, limit_bytes: int) -> None:
        self.partial.hash_forward(limit_bytes)

    @rule()
    def stop_and_resume(self) -> None:
        self.partial.close()
        self.safe = set(self.written)
        self.resume()

    @rule(torn_bytes=st.integers(0, 19))
    def end_and_resume(self, torn_bytes: int) -> None:
        """As after a kill, in the middle of writing a record."""
        for descriptor in (self.partial._part, self.partial._journal):
            os.close(descriptor)
        with self.layout.journal_of(DESCRIPTOR.digest).open("ab") as journal:
            journal.write(b"\xff" * torn_bytes)
        self.written = set(self.safe)
        self.resume()

    @invariant()
    def what_is_missing_is_what_was_not_written(self) -> None:
        if hasattr(self, "partial"):
            missing = {at for start, end in self.partial.missing() for at in range(start, end)}
            assert missing == set(range(len(CONTENT))) - self.written

    def teardown(self) -> None:
        if not hasattr(self, "partial"):
            return
        with contextlib.ExitStack() as at_end:
            at_end.callback(shutil.rmtree, self.root)
            at_end.callback(self.partial.close)
            for start, end in self.partial.missing():
                self.partial.write_at(start, CONTENT[start:end])
            self.partial.finish()
            stored = BlobStore(self.layout, Disk()).adopt(self.partial)
            assert stored.path.read_bytes() == CONTENT
            assert not any(self.layout.partial.iterdir())


TestDownload = Download.TestCase
TestDownload.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
