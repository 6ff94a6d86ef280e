"""A real daemon, the real engine, the default model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, running_daemon

MODEL = "ai/smollm2:135M-Q4_1"


REASONING_MODEL = "ai/thinker:135M"
_TEMPLATE = """{% for turn in messages %}<|im_start|>{{ turn.role }}
{{ turn.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
<think>{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"""


@pytest.fixture(scope="package")
def reasoning_model(
    daemon: RunningDaemon, default_model_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The default model under a template that opens its reasoning. It was not trained to close it, and does
    when it has to answer in a form."""
    template = tmp_path_factory.mktemp("template") / "thinker.jinja"
    template.write_text(_TEMPLATE)
    daemon.package(REASONING_MODEL, default_model_file, "--chat-template", str(template))
    return REASONING_MODEL


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory, default_model_file: Path) -> Iterator[RunningDaemon]:
    license_file = default_model_file.with_name("LICENSE")
    with running_daemon(tmp_path_factory.mktemp("daemon"), RUNNER_ENGINE="llama") as running:
        running.package(MODEL, default_model_file, "--license", str(license_file))
        running.runner("ctl", "start", MODEL, "--keep-alive", "-1")
        yield running
