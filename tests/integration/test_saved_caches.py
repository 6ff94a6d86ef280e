"""Prefixes outlive unloads and daemons: what usage, `ps`, `df` and the disk tell of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import RunningDaemon, running_daemon

SYSTEM = {"role": "system", "content": "You are of use, and brief. " * 20}
N_SYSTEM = len(SYSTEM["content"])


def ask(daemon: RunningDaemon, text: str, **fields: Any) -> int:
    """Tokens of the prompt that were in cells."""
    messages = [SYSTEM, {"role": "user", "content": text}]
    body = {"model": "one", "messages": messages, "max_tokens": 9, **fields}
    count = daemon.post("/v1/chat/completions", body)["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert isinstance(count, int)
    return count


def unload(daemon: RunningDaemon) -> None:
    daemon.runner("ctl", "unload", "one")


def restored(daemon: RunningDaemon) -> int:
    (worker,) = daemon.get("/control/v1/ps")["workers"]
    count = worker["meters"]["restored_tokens"]
    assert isinstance(count, int)
    return count


def files(directory: Path) -> list[Path]:
    return list((directory / "store-cache").glob("*.state"))


def test_a_prefix_outlives_the_unload_of_its_model(own_daemon: RunningDaemon) -> None:
    assert ask(own_daemon, "[[say one]]") == 0
    unload(own_daemon)
    usage = own_daemon.get("/control/v1/df")
    assert usage["cache_states"] == 1 and usage["cache_bytes"] > N_SYSTEM
    assert "Saved caches" in own_daemon.runner("ctl", "df").stdout
    assert ask(own_daemon, "[[say two]]") > N_SYSTEM
    assert restored(own_daemon) > N_SYSTEM
    assert "tokens from host memory or saved states" in own_daemon.runner("ctl", "ps", "--verbose").stdout


def test_a_prefix_outlives_the_daemon(tmp_path: Path, tiny_model: Path) -> None:
    with running_daemon(tmp_path) as first:
        first.package("one", tiny_model)
        assert ask(first, "[[say one]]") == 0
    assert len(files(tmp_path)) == 1
    for path in (tmp_path / "store-cache").iterdir():
        assert path.stat().st_mode & 0o077 == 0
    with running_daemon(tmp_path) as second:
        assert ask(second, "[[say two]]") > N_SYSTEM
        assert restored(second) > N_SYSTEM


def test_G12_a_damaged_state_is_dropped_and_the_prompt_computed(tmp_path: Path, tiny_model: Path) -> None:
    with running_daemon(tmp_path) as first:
        first.package("one", tiny_model)
        ask(first, "[[say one]]")
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[-40] ^= 1  # in its content, so that it is offered
    path.write_bytes(content)
    with running_daemon(tmp_path) as second:
        assert ask(second, "[[say two]]") == 0
        assert restored(second) == 0
        assert not path.exists()
        assert "saved state was removed" in second.log


def test_states_go_with_the_last_model_of_their_weights(own_daemon: RunningDaemon, tmp_path: Path) -> None:
    ask(own_daemon, "[[say one]]")
    unload(own_daemon)
    own_daemon.runner("ctl", "rm", "one")  # `two` has the same weights
    assert len(files(tmp_path)) == 1
    own_daemon.runner("ctl", "rm", "two")
    assert files(tmp_path) == []
    assert own_daemon.get("/control/v1/df")["cache_states"] == 0


def test_another_package_of_the_same_weights_shares_them(own_daemon: RunningDaemon, tiny_model: Path) -> None:
    own_daemon.package("three", tiny_model, "--context-size", "1024")
    ask(own_daemon, "[[say one]]")
    unload(own_daemon)
    assert ask(own_daemon, "[[say two]]", model="three") > N_SYSTEM


@pytest.mark.parametrize("how", ["off", "0"])
def test_switched_off_nothing_is_saved_and_what_was_there_goes(
    tmp_path: Path, tiny_model: Path, how: str
) -> None:
    with running_daemon(tmp_path) as first:
        first.package("one", tiny_model)
        ask(first, "[[say one]]")
    assert len(files(tmp_path)) == 1
    with running_daemon(tmp_path, "--cache-disk", how) as second:
        assert files(tmp_path) == []
        assert ask(second, "[[say two]]") == 0
        unload(second)
        assert files(tmp_path) == []


def test_nothing_is_saved_of_requests_that_ask_for_it(own_daemon: RunningDaemon, tmp_path: Path) -> None:
    ask(own_daemon, "[[say one]]", cache_prompt=False)
    unload(own_daemon)
    assert files(tmp_path) == []


def talk(daemon: RunningDaemon, who: str, turn: int) -> tuple[int, int]:
    """Tokens of the prompt of a turn, and those that were in cells."""
    messages = [{"role": "system", "content": f"{who} asks. " + "You are of use, and brief. " * 20}]
    for earlier in range(turn):
        messages.append({"role": "user", "content": f"[[say {who} {earlier}]]"})
        messages.append({"role": "assistant", "content": f"{who} {earlier}"})
    messages.append({"role": "user", "content": f"[[say {who} {turn}]]"})
    answer = daemon.post("/v1/chat/completions", {"model": "one", "messages": messages, "max_tokens": 20})
    assert answer["choices"][0]["message"]["content"] == f"{who} {turn}"
    usage = answer["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def saved(daemon: RunningDaemon) -> int:
    (worker,) = daemon.get("/control/v1/ps")["workers"]
    count = worker["meters"]["saved_tokens"]
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("at_once", [False, True])
def test_four_users_where_memory_is_enough_for_three_find_their_last_turn(
    tmp_path: Path, tiny_model: Path, at_once: bool
) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.package("one", tiny_model, "--context-size", "1024")
        before = dict.fromkeys("abcd", 0)
        for turn in range(4):
            with ThreadPoolExecutor(4 if at_once else 1) as pool:
                told = list(pool.map(lambda who: talk(daemon, who, turn), "abcd"))  # noqa: B023
            found = [told[index][1] >= 0.9 * before[who] for index, who in enumerate("abcd")]
            if turn > 1:  # of the first it was not known that somebody would go on from it
                assert any(found) if at_once else all(found)  # one is saved at a time
            before = {who: told[index][0] for index, who in enumerate("abcd")}
        assert saved(daemon) > 0 and restored(daemon) > 0
        assert "tokens to host memory" in daemon.runner("ctl", "ps", "--verbose").stdout
        assert len(files(tmp_path)) <= 4  # a turn replaces the turns before


def test_switched_off_it_comes_back_from_memory_and_nothing_is_saved(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_daemon(tmp_path, "--cache-disk", "off") as daemon:
        daemon.package("one", tiny_model, "--context-size", "1024")
        for who in "aba":
            talk(daemon, who, 1)
        assert saved(daemon) > 0 and restored(daemon) > 0
        for who in "cdb":
            talk(daemon, who, 1)
        assert files(tmp_path) == []


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_G12_of_a_state_that_cannot_be_had_the_prompt_is_computed(
    tmp_path: Path, tiny_model: Path, how: str
) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.package("one", tiny_model, "--context-size", "1024")
        for who in "abcd":
            talk(daemon, who, 0)
            talk(daemon, who, 1)
        assert files(tmp_path)
        for path in files(tmp_path):
            if how == "damaged":
                content = bytearray(path.read_bytes())
                content[-40] ^= 1
                path.write_bytes(content)
            else:
                path.unlink()
        before = restored(daemon)
        _, n_cached = talk(daemon, "a", 2)
        assert (n_cached, restored(daemon)) == (0, before)


def test_what_was_saved_before_a_crash_is_of_use_after_it(tmp_path: Path, tiny_model: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.package("one", tiny_model, "--context-size", "1024")
        for who in "abcd":
            talk(daemon, who, 0)
            talk(daemon, who, 1)
        assert files(tmp_path)
        daemon.runner("run", "one", "[[crash segv]]", check=False)
        _, n_cached = talk(daemon, "a", 2)
        assert n_cached > 500


def test_a_worker_that_crashed_leaves_nothing(own_daemon: RunningDaemon, tmp_path: Path) -> None:
    ask(own_daemon, "[[say one]]")
    own_daemon.runner("run", "one", "[[crash segv]]", check=False)
    assert files(tmp_path) == []


@pytest.mark.real_model
def test_a_prefix_of_a_real_model_outlives_the_daemon(tmp_path: Path, default_model_file: Path) -> None:
    answers = []
    for is_first in (True, False):
        with running_daemon(tmp_path, RUNNER_ENGINE="llama") as daemon:
            if is_first:
                daemon.package("one", default_model_file)
            messages = [SYSTEM, {"role": "user", "content": "Name a colour."}]
            body = {"model": "one", "messages": messages, "max_tokens": 8, "temperature": 0}
            answer = daemon.post("/v1/chat/completions", body)
            answers.append(answer["choices"][0]["message"]["content"])
            n_prompt = answer["usage"]["prompt_tokens"]
            n_cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert n_cached == (0 if is_first else n_prompt - 1)
    assert len(answers) == 2
