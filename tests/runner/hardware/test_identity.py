"""Names that are equal where measured sizes hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.hardware.identity import installation_identity, machine_identity

CPUINFO = "processor : 0\nmodel name : X\nflags\t\t: fpu {features}\nbogomips : 5\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(features="avx2"))
    (tmp_path / "dev").mkdir()
    return tmp_path


def identity(machine: Path, **environment: str) -> str:
    return machine_identity(environment, cpuinfo=machine / "cpuinfo", devices=machine / "dev")


def test_the_same_machine_has_one_name(machine: Path) -> None:
    assert identity(machine) == identity(machine)
    assert identity(machine, A="1", B="2") == identity(machine, B="2", A="1")
    assert machine_identity({}) == machine_identity({})


def test_other_instructions_devices_and_variables_are_another_machine(machine: Path) -> None:
    names = {identity(machine), identity(machine, CUDA_VISIBLE_DEVICES="0")}
    (machine / "dev" / "nvidia0").touch()
    names.add(identity(machine))
    (machine / "cpuinfo").write_text(CPUINFO.format(features="avx2 avx512f"))
    names.add(identity(machine))
    assert len(names) == 4


def test_what_cannot_be_read_is_left_out(machine: Path) -> None:
    (machine / "cpuinfo").unlink()
    assert identity(machine)
    assert identity(machine, PATH="/\udcff")  # a variable need not be text


def test_an_installation_is_its_version_and_its_libraries() -> None:
    name = installation_identity("llama-cpp-python")
    assert name.startswith("llama-cpp-python ")
    assert len(name.split()) == 3
    assert name == installation_identity("llama-cpp-python")


def test_what_is_not_installed_has_no_name() -> None:
    assert installation_identity("no-such-package") == ""
