"""What a keeper tells a worker to load, and what it makes of a load that failed.

Imports the wire and the domain. Used by `actors/worker.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from actors.output import clean_text
from runner.domain.engine import EngineOptions
from runner.domain.model import ModelFiles
from runner.errors import InvalidModelFile, LoadingFailed, RunnerError, TemplateFailed
from runner.wire.messages import LoadFailed, LoadModel

_ERRORS: Final[Mapping[str, Callable[[str], RunnerError]]] = {
    InvalidModelFile.code: InvalidModelFile,
    TemplateFailed.code: TemplateFailed,
}


def load_message(engine: str, files: ModelFiles, options: EngineOptions) -> LoadModel:
    return LoadModel(
        engine=engine,
        weights_paths=tuple(map(str, files.weights)),
        options=options,
        chat_template=files.chat_template,
    )


def load_error(message: LoadFailed, files: ModelFiles) -> RunnerError:
    """As the error of ours that its code names; clients see it, so it says nothing of where our files lie."""
    text = clean_text(message.message)
    for path in files.weights:
        text = text.replace(str(path), "the model file")
    return _ERRORS.get(message.code, LoadingFailed)(text)
