"""Shared prefixes from a client's side: what the usage says, and what `ps` tells of them."""

from __future__ import annotations

from typing import Any

from tests.support.daemon import RunningDaemon

SYSTEM = {"role": "system", "content": "You are of use, and brief. " * 20}


def chat(text: str, **fields: Any) -> dict[str, Any]:
    messages = [SYSTEM, {"role": "user", "content": text}]
    return {"model": "one", "messages": messages, "max_tokens": 9, **fields}


def cached(daemon: RunningDaemon, body: dict[str, Any]) -> int:
    answer = daemon.post("/v1/chat/completions", body)
    count = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert answer["timings"]["cache_n"] == count
    assert isinstance(count, int)
    return count


def test_usage_tells_what_was_cached_and_ps_tells_how_often(own_daemon: RunningDaemon) -> None:
    n_system = len(SYSTEM["content"])
    assert cached(own_daemon, chat("[[say one]]")) == 0
    assert n_system < cached(own_daemon, chat("[[say two]]")) < n_system + 20
    assert cached(own_daemon, chat("[[say two]]", cache_prompt=False)) == 0
    assert cached(own_daemon, chat("[[say two]]")) > n_system + 8
    (worker,) = own_daemon.get("/control/v1/ps")["workers"]
    meters = worker["meters"]
    assert meters["reuse_hits"] == 2
    assert meters["reuse_misses"] == {
        "new": 1, "given_up": 0, "window": 0, "unsupported": 0, "disabled": 1,
    }  # fmt: skip
    assert meters["cells_retained"] > n_system
    assert meters["cells_used"] == 0
    assert meters["cells_free"] == worker["n_cells"] - meters["cells_retained"]
    assert 0 < meters["computing_s"] <= meters["step_s"] < 60
    assert "  reused      " in own_daemon.runner("ctl", "ps", "--verbose").stdout
