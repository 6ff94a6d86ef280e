"""Settings: precedence, and every fault of every source at once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from runner.config import OPTIONS, Origin, resolve
from runner.errors import StartRefused


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("")
    return path


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(file: Path) -> None:
    file.write_text("port = 1\nqueue_limit = 5\ncontext_size = 512\n")
    environment = {"RUNNER_PORT": "2", "RUNNER_QUEUE_LIMIT": "6"}
    resolved = resolve({"port": "3"}, environment, file)
    assert resolved.settings.port == 3
    assert resolved.settings.queue_limit == 6
    assert resolved.settings.context_size == 512
    assert resolved.settings.max_sequences == 8
    assert resolved.origins["port"] is Origin.FLAG
    assert resolved.origins["queue_limit"] is Origin.ENVIRONMENT
    assert resolved.origins["context_size"] is Origin.FILE
    assert resolved.origins["max_sequences"] is Origin.DEFAULT


def test_all_faults_are_reported_together(file: Path) -> None:
    file.write_text("queue_limit = true\nnonsense = 1\n")
    with pytest.raises(StartRefused) as refusal:
        resolve({"port": "70000", "host": "evil.example"}, {"RUNNER_LOG_LEVEL": "loud"}, file)
    text = str(refusal.value)
    for part in ("queue_limit", "nonsense", "--port", "--host", "RUNNER_LOG_LEVEL"):
        assert part in text


@pytest.mark.parametrize("content", ["port = ", "[", "\x00", "version = 2"])
def test_L14_a_damaged_or_newer_file_is_named_and_kept(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(StartRefused, match=r"config\.toml"):
        resolve({}, {}, file)
    assert file.read_text() == content


def test_L14_an_empty_file_means_defaults(file: Path) -> None:
    assert resolve({}, {}, file).settings.host == "127.0.0.1"


def test_a_file_named_explicitly_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="no such file"):
        resolve({}, {}, tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300.0), ("0", 0.0), ("-1", math.inf), ("never", math.inf), ("90", 90.0)]
)
def test_durations(file: Path, text: str, seconds: float) -> None:
    assert resolve({"keep_alive": text}, {}, file).settings.keep_alive_s == seconds


@pytest.mark.parametrize("text", ["-2", "soon", "nan", ""])
def test_a_duration_that_is_none_is_refused(file: Path, text: str) -> None:
    with pytest.raises(StartRefused):
        resolve({"keep_alive": text}, {}, file)


@pytest.mark.parametrize(("text", "is_accepted"), [("0", False), ("1", True), ("64", True), ("65", False)])
def test_the_range_of_max_sequences(file: Path, text: str, is_accepted: bool) -> None:
    if is_accepted:
        assert resolve({"max_sequences": text}, {}, file).settings.max_sequences == int(text)
    else:
        with pytest.raises(StartRefused):
            resolve({"max_sequences": text}, {}, file)


def test_lists_come_as_text_or_as_toml_lists(file: Path) -> None:
    file.write_text('allowed_hosts = ["a.example", "b.example"]\nallowed_origins = "https://c.example"\n')
    settings = resolve({}, {}, file).settings
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.allowed_origins == ("https://c.example",)


def test_every_option_has_help_and_an_environment_name() -> None:
    for option in OPTIONS:
        assert option.help
        assert option.environment.startswith("RUNNER_")
