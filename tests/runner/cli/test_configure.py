"""`configure`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.domain.sampling import RANGES
from runner.domain.settings import CHAT_TEMPLATE_BYTES_MAX, SETTINGS
from runner.domain.status import ModelConfiguration, SettingStatus
from tests.support.control import ID, Cli
from tests.support.scripted_server import Request, answer, refusal

MODEL = "ai/smollm2:135M-Q4_1"
PATH = "/control/v1/configure"


def configuration(*settings: tuple[str, Any, str], **changes: bool) -> ModelConfiguration:
    statuses = tuple(SettingStatus(name=name, value=value, origin=origin) for name, value, origin in settings)
    return ModelConfiguration(model=MODEL, model_id=ID, settings=statuses, **changes)


EVERY = configuration(
    *((setting.name, None, "built-in") for setting in SETTINGS if setting.name != "context_size"),
    ("context_size", 512, "configured"),
)


def sent(cli: Cli, *arguments: str) -> Any:
    """What the command asks for, beside the model."""
    cli.routes[f"POST {PATH}"] = EVERY
    ended = cli("ctl", "configure", MODEL, *arguments)
    assert ended.status == 0, ended.stderr
    [body] = cli.sent(f"POST {PATH}")
    assert body.pop("model") == MODEL
    return body


SAMPLING = tuple(RANGES)[5:]
"""What is beside the usual five; 1 is in the range of each."""


def test_every_setting_has_its_option(cli: Cli, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ 'ä' }}\n", encoding="utf-8")
    arguments = (
        *("--context-size", "512", "--parallel", "2", "--threads", "3", "--key-type", "q8_0"),
        *("--value-type", "q4_0", "--flash-attention", "on", "--chat-template", str(template)),
        *("--keep-alive", "10m", "--pin", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "5"),
        *("--min-p", "0.1", "--seed", "-7"),
        *(argument for name in SAMPLING for argument in (f"--{name.replace('_', '-')}", "1")),
    )
    assert sent(cli, *arguments) == {
        "set": {
            "context_size": 512,
            "max_sequences": 2,
            "threads": 3,
            "key_type": "q8_0",
            "value_type": "q4_0",
            "flash_attention": "on",
            "chat_template": "{{ 'ä' }}\n",
            "keep_alive": "10m",
            "pin": True,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "seed": -7,
            **dict.fromkeys(SAMPLING, 1),
        },
        "unset": [],
    }
    assert len(arguments) == 2 * len(SETTINGS) - 1


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (("--no-pin",), {"set": {"pin": False}, "unset": []}),
        (("--keep-alive", "-1"), {"set": {"keep_alive": "-1"}, "unset": []}),
        (("--kv-type", "q8_0"), {"set": {"key_type": "q8_0", "value_type": "q8_0"}, "unset": []}),
        (
            ("--kv-type", "q8_0", "--key-type", "f16"),
            {"set": {"key_type": "f16", "value_type": "q8_0"}, "unset": []},
        ),
        (("--unset", "seed", "--unset", "top-k"), {"set": {}, "unset": ["seed", "top_k"]}),
        (("--unset", "kv-type"), {"set": {}, "unset": ["key_type", "value_type"]}),
        (("--unset", "parallel"), {"set": {}, "unset": ["max_sequences"]}),
        (("--unset", "all"), {"set": {}, "unset": sorted(setting.name for setting in SETTINGS)}),
        (
            ("--unset", "all", "--seed", "1"),
            {"set": {"seed": 1}, "unset": sorted(one.name for one in SETTINGS if one.name != "seed")},
        ),
    ],
)
def test_what_is_asked(cli: Cli, arguments: tuple[str, ...], body: dict[str, Any]) -> None:
    assert sent(cli, *arguments) == body


def test_what_was_changed_is_told_with_its_origin(cli: Cli) -> None:
    cli.routes[f"POST {PATH}"] = configuration(
        ("context_size", 512, "configured"), ("seed", None, "built-in"), ("pin", True, "configured")
    )
    ended = cli("ctl", "configure", MODEL, "--context-size", "512", "--unset", "seed")
    assert (ended.status, ended.stdout) == (0, "")
    assert ended.stderr.splitlines() == ["context_size is 512 (configured)", "seed is not set (built-in)"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("was_unloaded", "was unloaded; its next use"),
        ("is_outdated", f"is in use and keeps what it was loaded with until it is unloaded: "
                        f"`runner ctl unload {MODEL}`"),
    ],
)  # fmt: skip
def test_what_it_means_for_a_loaded_model_is_told(cli: Cli, change: str, told: str) -> None:
    cli.routes[f"POST {PATH}"] = configuration(("context_size", 512, "configured"), **{change: True})
    assert told in cli("ctl", "configure", MODEL, "--context-size", "512").stderr


@pytest.mark.parametrize("arguments", [(), ("--show",)])
def test_everything_is_shown_with_its_origin(cli: Cli, arguments: tuple[str, ...]) -> None:
    asked: list[str] = []

    def route(request: Request) -> Any:
        asked.append(request.path)
        return answer(
            configuration(
                ("context_size", 512, "configured"),
                ("chat_template", "{{ 1 }}", "configured"),
                ("keep_alive", -1, "daemon"),
                ("pin", False, "built-in"),
                ("seed", None, "built-in"),
            )
        )

    cli.routes[f"GET {PATH}?model=ai%2Fsmollm2%3A135M-Q4_1"] = route
    ended = cli("ctl", "configure", MODEL, *arguments)
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        "SETTING        VALUE                   FROM",
        "context_size   512                     configured",
        "chat_template  a text of 7 characters  configured",
        "keep_alive     for ever                daemon",
        "pin            no                      built-in",
        "seed                                   built-in",
    ]
    assert len(asked) == 1


def test_a_change_is_shown_when_that_is_asked_for_too(cli: Cli) -> None:
    cli.routes[f"POST {PATH}"] = configuration(("keep_alive", 600.0, "configured"))
    ended = cli("ctl", "configure", MODEL, "--keep-alive", "10m", "--show")
    assert ended.stdout.splitlines()[1].split() == ["keep_alive", "10m", "configured"]


def test_for_programs_it_is_the_answer_of_the_api(cli: Cli) -> None:
    cli.routes[f"POST {PATH}"] = configuration(("seed", 1, "configured"))
    ended = cli("ctl", "configure", MODEL, "--seed", "1", "--json")
    assert json.loads(ended.stdout)["settings"] == [{"name": "seed", "value": 1, "origin": "configured"}]
    assert ended.stderr == ""


def test_all_faults_are_told_at_once_with_the_names_of_options(cli: Cli) -> None:
    ended = cli(
        "ctl", "configure", MODEL, "--temperature", "3", "--context-size", "1", "--keep-alive", "soon"
    )
    assert ended.status == 2
    [error, hint] = ended.stderr.splitlines()
    assert "--temperature must be between 0 and 2, and is 3.0" in error
    assert "--context-size must be between 256 and 16777216, and is 1" in error
    assert "--keep-alive 'soon' is not a duration" in error
    assert hint == "hint: `runner ctl configure --help` tells the usage"
    assert cli.server.requests == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff", "is not UTF-8 text"),
        (b"", "--chat-template must be a text"),
        (b"x" * (CHAT_TEMPLATE_BYTES_MAX + 1), "--chat-template must have at most 262144 bytes"),
    ],
)
def test_a_template_that_is_none_is_refused_before_it_is_sent(
    cli: Cli, tmp_path: Path, content: bytes, told: str
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_bytes(content)
    ended = cli("ctl", "configure", MODEL, "--chat-template", str(template))
    assert ended.status == 2
    assert told in ended.stderr
    assert cli.server.requests == []


def test_what_the_daemon_refuses_is_an_error(cli: Cli) -> None:
    cli.routes[f"POST {PATH}"] = lambda _: refusal(
        400, "invalid_parameter", "set.context_size: must be at most 8192"
    )
    ended = cli("ctl", "configure", MODEL, "--context-size", "9000")
    assert (ended.status, ended.stderr) == (1, "error: set.context_size: must be at most 8192\n")
