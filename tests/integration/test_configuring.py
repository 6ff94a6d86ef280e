"""A daemon whose models are configured: what holds, when, and after a restart."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import RunningDaemon, running_daemon

CONFIGURE = "/control/v1/configure"


def shown(daemon: RunningDaemon, model: str = "one") -> dict[str, tuple[Any, str]]:
    answer = daemon.get(f"{CONFIGURE}?model={model}")
    return {one["name"]: (one["value"], one["origin"]) for one in answer["settings"]}


def worker(daemon: RunningDaemon, model: str = "one") -> dict[str, Any] | None:
    workers = daemon.get("/control/v1/ps")["workers"]
    return next((row for row in workers if row["model"] == f"ai/{model}"), None)


def refusal(daemon: RunningDaemon, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        daemon.post(path, body)
    return refused.value.code, json.loads(refused.value.read())["error"]


def ask(daemon: RunningDaemon, model: str = "one", **fields: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
    return daemon.post("/v1/chat/completions", body)


def test_a_model_is_loaded_kept_and_shown_as_configured(own_daemon: RunningDaemon) -> None:
    daemon = own_daemon
    daemon.runner("ctl", "configure", "one", "--context-size", "512", "--keep-alive", "10m", "--threads", "1")
    ask(daemon)
    row = worker(daemon)
    assert row is not None
    assert (row["context_size"], row["keep_alive_s"]) == (512, 600.0)
    assert shown(daemon)["context_size"] == (512, "configured")
    assert shown(daemon)["max_sequences"] == (8, "built-in")
    assert shown(daemon, "two")["context_size"] == (512, "packaged")


def test_an_idle_model_is_loaded_anew_and_what_holds_at_once_does_not_unload_it(
    own_daemon: RunningDaemon,
) -> None:
    daemon = own_daemon
    ask(daemon)
    before = worker(daemon)
    assert before is not None
    told = daemon.runner("ctl", "configure", "one", "--temperature", "0.1", "--keep-alive", "20m").stderr
    assert "unloaded" not in told
    after = worker(daemon)
    assert after is not None
    assert (after["pid"], after["keep_alive_s"]) == (before["pid"], 1200.0)
    told = daemon.runner("ctl", "configure", "one", "--context-size", "1024").stderr
    assert "was unloaded; its next use" in told
    assert worker(daemon) is None
    ask(daemon)
    anew = worker(daemon)
    assert anew is not None
    assert (anew["context_size"], anew["keep_alive_s"]) == (1024, 1200.0)
    daemon.runner("ctl", "configure", "one", "--unset", "keep-alive")
    renewed = worker(daemon)
    assert renewed is not None
    assert (renewed["pid"], renewed["keep_alive_s"]) == (anew["pid"], 300.0)


def test_a_configuration_outlives_the_daemon_and_goes_with_its_model(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.package("one", tiny_model)
        daemon.runner("ctl", "tag", "one", "uno")
        daemon.runner("ctl", "configure", "one", "--context-size", "512", "--seed", "7")
    with running_daemon(tmp_path, "--context-size", "2048", RUNNER_MAX_SEQUENCES="3") as daemon:
        daemon.runner("ctl", "configure", "uno", "--unset", "context-size")
        assert shown(daemon)["seed"] == (7, "configured")
        assert shown(daemon)["context_size"] == (2048, "daemon")
        assert shown(daemon)["max_sequences"] == (3, "daemon")
        table = daemon.runner("ctl", "configure", "one", "--show").stdout
        assert ["seed", "7", "configured"] in [line.split() for line in table.splitlines()]
        daemon.runner("ctl", "rm", "one", "uno")
        assert list((tmp_path / "store" / "settings").iterdir()) == []


def test_a_configured_template_that_does_not_compile_fails_the_chat_and_says_so(
    own_daemon: RunningDaemon, tmp_path: Path
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}", encoding="utf-8")
    own_daemon.runner("ctl", "configure", "one", "--chat-template", str(template))
    status, error = refusal(
        own_daemon,
        "/v1/chat/completions",
        {"model": "one", "messages": [{"role": "user", "content": "hello"}]},
    )
    assert (status, error["code"]) == (400, "template_failed")
    # The scripted engine does what stands before this mark.
    template.write_text("[[say ready]]<|answer|>", encoding="utf-8")
    own_daemon.runner("ctl", "configure", "one", "--chat-template", str(template))
    assert ask(own_daemon)["choices"][0]["message"]["content"] == "ready"


def test_what_cannot_be_configured_is_refused_with_every_reason(daemon: RunningDaemon) -> None:
    status, error = refusal(
        daemon,
        CONFIGURE,
        {
            "model": "one",
            "set": {"context_size": 9000, "value_type": "q8_0", "flash_attention": "off"},
        },
    )
    assert (status, error["code"]) == (400, "invalid_parameter")
    assert "must be at most 8192, which the model was trained for" in error["message"]
    assert "set.flash_attention" in error["message"]
    assert {origin for _, origin in shown(daemon).values()} <= {"built-in", "daemon", "model"}
