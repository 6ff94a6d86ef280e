"""Requests that end workers, and are not run a third time (L05). Pure.

Whoever was running when a worker died is suspected, until it finishes somewhere. Suspects of one model run
one at a time (`runner/api/trials.py`), so the next death tells who it was: a request that was there both
times is quarantined, and the others, whose only fault was to be near, are cleared as they finish.

A request is known by a keyed hash of its model and of everything that a worker is sent of it but its id, so
neither the table nor a dump of it tells what anybody has asked. It is bounded and forgets with time: an
engine may also die of what the machine does to it.

Imports the domain and the wire, whose encoding is the canonical form.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Final

import attrs

from runner.domain.generation import ChatPrompt, GenerationRequest
from runner.oci.digest import Digest
from runner.wire.codec import encode
from runner.wire.messages import Generate

KILLS_MAX: Final = 2
REQUESTS_MAX: Final = 1024
FORGET_S: Final = 900.0
_KEY_BYTES_MAX: Final = 64  # of BLAKE2b


class Verdict(enum.Enum):
    CLEAR = "clear"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"


@attrs.frozen
class _Record:
    kills: int
    last_s: float


class Suspects:
    """The `limit` requests that were there last when a worker died. `key` is random, of this process."""

    def __init__(self, key: bytes, *, limit: int = REQUESTS_MAX, forget_s: float = FORGET_S) -> None:
        self._key = key[:_KEY_BYTES_MAX]
        self._limit = limit
        self._forget_s = forget_s
        self._records: dict[bytes, _Record] = {}

    @property
    def is_empty(self) -> bool:
        """Nobody is suspected, so no fingerprint is needed."""
        return not self._records

    def fingerprint(self, model_id: Digest, *requests: GenerationRequest) -> bytes:
        """The same for the same questions to the same model. Raises TooLarge for what no worker can be sent.

        Costs 2 ms for each megabyte of the requests.
        """
        hashed = hashlib.blake2b(str(model_id).encode(), key=self._key, digest_size=16)
        for request in requests:
            prompt = request.prompt
            if isinstance(prompt, ChatPrompt):
                options = dict(sorted(prompt.template_options.items()))
                prompt = attrs.evolve(prompt, template_options=options)
            hashed.update(encode(Generate(attrs.evolve(request, request_id="-", prompt=prompt))))
        return hashed.digest()

    def verdict(self, fingerprint: bytes, now_s: float) -> Verdict:
        self._forget(now_s)
        record = self._records.get(fingerprint)
        if record is None:
            return Verdict.CLEAR
        return Verdict.QUARANTINED if record.kills >= KILLS_MAX else Verdict.SUSPECT

    def killed(self, fingerprint: bytes, now_s: float) -> None:
        """A worker died while it ran this request."""
        self._forget(now_s)
        before = self._records.pop(fingerprint, None)
        self._records[fingerprint] = _Record(before.kills + 1 if before is not None else 1, now_s)
        if len(self._records) > self._limit:
            del self._records[next(iter(self._records))]

    def cleared(self, fingerprint: bytes) -> None:
        """It has run to an end, and its worker lives."""
        self._records.pop(fingerprint, None)

    def _forget(self, now_s: float) -> None:
        """The oldest come first."""
        while self._records:
            oldest = next(iter(self._records))
            if now_s - self._records[oldest].last_s < self._forget_s:
                return
            del self._records[oldest]

    def __repr__(self) -> str:
        quarantined = sum(record.kills >= KILLS_MAX for record in self._records.values())
        return f"<Suspects {len(self._records)}, of them {quarantined} in quarantine>"
