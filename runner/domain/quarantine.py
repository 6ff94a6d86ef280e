"""What is remembered of a model whose loads crashed. Values only."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class FailedLoads:
    """`crashes` in a row under one engine; `cause` is of the last one, a phrase for people.

    `model_id` is `sha256:…`; `model` the name it had, for those who read the file; `engine` with its version.
    """

    model_id: str
    model: str
    engine: str
    crashes: int
    cause: str
