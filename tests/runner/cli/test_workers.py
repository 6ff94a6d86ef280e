"""`ps`, `start`, `unload`."""

from __future__ import annotations

import json

import pytest

from runner.domain.status import EngineMeters, SchedulerStatus, UnloadReport
from tests.support.control import ID, Cli, worker_status
from tests.support.scripted_server import refusal


def test_ps_prints_a_row_for_each_model(cli: Cli) -> None:
    cli.routes["GET /control/v1/ps"] = SchedulerStatus(
        workers=(
            worker_status(running_sequences=2, waiting=1, waiting_sequences=3, leases=2, expires_in_s=None),
            worker_status(
                model="ai/b",
                state="loading",
                pid=None,
                load_progress=0.42,
                resident_bytes=0,
                expires_in_s=None,
                load_s=None,
            ),
            worker_status(model="ai/c", expires_in_s=None, keep_alive_s=None),
        )
    )
    ended = cli("ctl", "ps")
    assert ended.status == 0
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "NAME                  ID            STATE        PID   MEMORY     CONTEXT  REQUESTS  WAITING  UNTIL",
        "ai/smollm2:135M-Q4_1  0123456789ab  ready        4711  256.0 MiB  8192     2         4",
        "ai/b                  0123456789ab  loading 42%        768.0 MiB  8192     0         0",
        "ai/c                  0123456789ab  ready        4711  256.0 MiB  8192     0         0        "
        "for ever",
    ]


METERS = EngineMeters(
    batch_prefill_tokens=64,
    batch_decode_tokens=0,
    step_s=0.2513,
    computing_s=0.2501,
    cells_used=700,
    cells_retained=1200,
    cells_free=14484,
    host_tokens=900,
    steps=310,
    prefill_tokens=2100,
    decode_tokens=1900,
    steps_s=12.0,
    all_computing_s=11.88,
    preemptions=1,
    reuse_hits=7,
    reused_tokens=2170,
    saved_tokens=800,
    restored_tokens=1600,
    reuse_misses={"new": 3, "given_up": 1, "window": 0, "unsupported": 0, "disabled": 0},
)


def test_ps_verbose_tells_what_each_engine_does(cli: Cli) -> None:
    cli.routes["GET /control/v1/ps"] = SchedulerStatus(
        workers=(worker_status(meters=METERS), worker_status(model="ai/c"))
    )
    assert cli("ctl", "ps", "--verbose").stdout.splitlines()[3:] == [
        "",
        "ai/smollm2:135M-Q4_1",
        "  last batch  64 tokens: 64 of prompts, 0 of answers",
        "  last step   251.3 ms, 1.2 ms of it outside the engine",
        "  cells       700 used, 1200 retained, 14484 free",
        "  host memory 900 tokens kept, sized for 8192",
        "  steps       310, 12000.0 ms, 120.0 ms of it outside the engine in all",
        "  tokens      2100 of prompts computed, 1900 of answers",
        "  reused      2170 tokens in 7 prompts",
        "  saved       800 tokens to host memory",
        "  restored    1600 tokens from host memory or saved states",
        "  not reused  4 prompts: 3 new, 1 given up",
        "  preemptions 1",
        "",
        "ai/c",
        "  steps       none yet",
    ]


def test_ps_without_models_is_a_header(cli: Cli) -> None:
    cli.routes["GET /control/v1/ps"] = SchedulerStatus()
    assert cli("ctl", "ps").stdout.split() == [
        "NAME", "ID", "STATE", "PID", "MEMORY", "CONTEXT", "REQUESTS", "WAITING", "UNTIL",
    ]  # fmt: skip


def test_ps_tells_when_an_idle_model_goes(cli: Cli) -> None:
    cli.routes["GET /control/v1/ps"] = SchedulerStatus(workers=(worker_status(expires_in_s=270.0),))
    assert cli("ctl", "ps").stdout.endswith("in 4m30s\n")
    cli.routes["GET /control/v1/ps"] = SchedulerStatus(workers=(worker_status(expires_in_s=-0.1),))
    assert cli("ctl", "ps").stdout.endswith("now\n")


def test_ps_for_programs_is_the_answer_of_the_api(cli: Cli) -> None:
    cli.routes["GET /control/v1/ps"] = SchedulerStatus(workers=(worker_status(),))
    document = json.loads(cli("ctl", "ps", "--json").stdout)
    assert document["workers"][0]["model_id"] == ID
    assert document["is_draining"] is False


def test_start_waits_and_tells_how_long_it_took(cli: Cli) -> None:
    cli.routes["POST /control/v1/start"] = worker_status()
    ended = cli("ctl", "start", "smollm2:135M-Q4_1")
    assert (ended.status, ended.stdout) == (0, "")
    assert ended.stderr == "ai/smollm2:135M-Q4_1 is loaded in 0.41s, context 8192\n"
    assert cli.sent("POST /control/v1/start") == [{"model": "smollm2:135M-Q4_1"}]


def test_start_passes_keep_alive_on(cli: Cli) -> None:
    cli.routes["POST /control/v1/start"] = worker_status()
    assert json.loads(cli("ctl", "start", "m", "--keep-alive", "-1", "--json").stdout)["pid"] == 4711
    assert cli.sent("POST /control/v1/start") == [{"model": "m", "keep_alive": "-1"}]


def test_start_asks_for_the_context_that_it_is_told(cli: Cli) -> None:
    cli.routes["POST /control/v1/start"] = worker_status()
    cli("ctl", "start", "m", "--ctx", "4096")
    assert cli.sent("POST /control/v1/start") == [{"model": "m", "context_size": 4096}]
    assert cli("ctl", "start", "m", "--ctx", "0").status == 2


def test_a_model_without_memory_gets_a_hint(cli: Cli) -> None:
    cli.routes["POST /control/v1/start"] = lambda _: refusal(
        503, "insufficient_memory", "loading m needs 9 bytes", **{"Retry-After": "5"}
    )
    ended = cli("ctl", "start", "m")
    assert ended.status == 1
    assert ended.stderr.splitlines() == [
        "error: loading m needs 9 bytes",
        "hint: `runner ctl ps` lists what is loaded, `runner ctl unload` makes room",
    ]


def test_unload_tells_what_it_did(cli: Cli) -> None:
    cli.routes["POST /control/v1/unload"] = UnloadReport(unloaded=("ai/a", "ai/b"), in_use=())
    ended = cli("ctl", "unload", "a", "b")
    assert ended.status == 0
    assert ended.stderr == "unloaded ai/a\nunloaded ai/b\n"
    assert cli.sent("POST /control/v1/unload") == [{"models": ["a", "b"]}]


def test_unload_of_what_is_in_use_exits_with_1(cli: Cli) -> None:
    cli.routes["POST /control/v1/unload"] = UnloadReport(unloaded=("ai/a",), in_use=("ai/b",))
    ended = cli("ctl", "unload", "--all")
    assert ended.status == 1
    assert ended.stderr == "unloaded ai/a\nai/b is in use and stays\n"
    assert cli.sent("POST /control/v1/unload") == [{"all": True}]


def test_unload_of_nothing_is_no_error(cli: Cli) -> None:
    cli.routes["POST /control/v1/unload"] = UnloadReport(unloaded=(), in_use=())
    ended = cli("ctl", "unload", "--all")
    assert (ended.status, ended.stderr) == (0, "nothing was loaded\n")


def test_unload_for_programs_is_the_answer_of_the_api_and_the_status_stays(cli: Cli) -> None:
    cli.routes["POST /control/v1/unload"] = UnloadReport(unloaded=(), in_use=("ai/b",))
    ended = cli("ctl", "unload", "b", "--json")
    assert json.loads(ended.stdout) == {"unloaded": [], "in_use": ["ai/b"]}
    assert ended.status == 1


@pytest.mark.parametrize("arguments", [(), ("m", "--all")])
def test_unload_wants_names_or_all(cli: Cli, arguments: tuple[str, ...]) -> None:
    ended = cli("ctl", "unload", *arguments)
    assert ended.status == 2
    assert ended.stderr.splitlines() == [
        "error: name models, or use --all",
        "hint: `runner ctl unload --help` tells the usage",
    ]
    assert cli.server.requests == []
