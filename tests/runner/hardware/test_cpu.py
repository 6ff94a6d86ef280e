"""Host memory and processors, read from machines laid out in directories."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from runner.hardware.cpu import PhysicalMemory, SystemPaths, read_cores, read_memory
from runner.hardware.device import CpuCores, DeviceMemory

GIB = 1024**3
UNLIMITED_V1 = 9_223_372_036_854_771_712  # what version 1 says for "no limit": the largest page-aligned int64


def _write(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(f"{content}\n")
    return directory


@pytest.fixture
def paths(tmp_path: Path) -> SystemPaths:
    """A machine that tells nothing yet."""
    return SystemPaths(proc=tmp_path / "proc", cgroup=tmp_path / "cgroup", cpus=tmp_path / "cpu")


def _v2(paths: SystemPaths, group: str) -> None:
    _write(paths.proc / "self", cgroup=f"0::{group}")
    _write(paths.cgroup, cgroup__controllers="cpu memory")


def _machine() -> PhysicalMemory:
    return PhysicalMemory(total_bytes=16 * GIB, available_bytes=10 * GIB)


def _memory(paths: SystemPaths) -> tuple[int, int, str]:
    memory = read_memory(paths, _machine)
    assert memory.device == "cpu"
    return memory.total_bytes, memory.free_bytes, memory.limited_by


def test_without_control_groups_the_machine_counts(paths: SystemPaths) -> None:
    assert read_memory(paths, _machine) == DeviceMemory(
        device="cpu", total_bytes=16 * GIB, free_bytes=10 * GIB, limited_by="physical"
    )


def test_O02_a_cgroup_limit_below_physical_memory_counts(paths: SystemPaths) -> None:
    _v2(paths, "/box")
    _write(paths.cgroup / "box", memory__max=str(4 * GIB), memory__current=str(1 * GIB))
    assert _memory(paths) == (4 * GIB, 3 * GIB, "cgroup")


def test_O02_a_cgroup_limit_above_physical_memory_does_not(paths: SystemPaths) -> None:
    _v2(paths, "/box")
    _write(paths.cgroup / "box", memory__max=str(64 * GIB), memory__current="0")
    assert _memory(paths) == (16 * GIB, 10 * GIB, "physical")


def test_O02_a_large_cgroup_that_is_nearly_full_limits_what_is_free(paths: SystemPaths) -> None:
    _v2(paths, "/box")
    _write(paths.cgroup / "box", memory__max=str(16 * GIB), memory__current=str(15 * GIB))
    assert _memory(paths) == (16 * GIB, 1 * GIB, "cgroup")


def test_O02_the_limit_of_a_group_above_ours_counts(paths: SystemPaths) -> None:
    _v2(paths, "/outer/middle/inner")
    _write(paths.cgroup / "outer", memory__max=str(2 * GIB), memory__current=str(1 * GIB))
    _write(paths.cgroup / "outer/middle", memory__max="max", memory__current=str(GIB // 2))
    _write(paths.cgroup / "outer/middle/inner", memory__max=str(8 * GIB), memory__current="0")
    assert _memory(paths) == (2 * GIB, 1 * GIB, "cgroup")


def test_O02_version_1_limits_count_and_its_unlimited_number_does_not(paths: SystemPaths) -> None:
    _write(paths.proc / "self", cgroup="5:cpu,cpuacct:/\n4:memory:/box\n0::/")
    _write(
        paths.cgroup / "memory",
        memory__limit_in_bytes=str(UNLIMITED_V1),
        memory__usage_in_bytes=str(3 * GIB),
    )
    box = paths.cgroup / "memory" / "box"
    _write(box, memory__limit_in_bytes=str(UNLIMITED_V1), memory__usage_in_bytes=str(2 * GIB))
    assert _memory(paths) == (16 * GIB, 10 * GIB, "physical")
    _write(box, memory__limit_in_bytes=str(3 * GIB))
    assert _memory(paths) == (3 * GIB, 1 * GIB, "cgroup")


def test_a_container_that_sees_the_name_of_the_host_reads_the_mounted_root(paths: SystemPaths) -> None:
    _write(paths.proc / "self", cgroup="4:memory:/docker/0123abcd")
    _write(paths.cgroup / "memory", memory__limit_in_bytes=str(2 * GIB), memory__usage_in_bytes=str(GIB))
    assert _memory(paths) == (2 * GIB, 1 * GIB, "cgroup")


def test_a_group_name_that_points_upwards_reads_the_mounted_root(paths: SystemPaths) -> None:
    _v2(paths, "/../neighbour")
    _write(paths.cgroup, memory__max=str(2 * GIB), memory__current="0")
    _write(paths.cgroup.parent / "neighbour", memory__max="1", memory__current="1")
    assert _memory(paths) == (2 * GIB, 2 * GIB, "cgroup")


@pytest.mark.parametrize(
    "names", [("active_file", "inactive_file"), ("total_active_file", "total_inactive_file")]
)
def test_file_pages_charged_to_the_group_count_as_free(paths: SystemPaths, names: tuple[str, str]) -> None:
    stat = f"anon 123\n{names[0]} {GIB}\n{names[1]} {GIB}\nshmem {GIB}"
    if names[0].startswith("total"):
        _write(paths.proc / "self", cgroup="4:memory:/")
        limits = {"memory__limit_in_bytes": str(8 * GIB), "memory__usage_in_bytes": str(5 * GIB)}
        _write(paths.cgroup / "memory", memory__stat=stat, **limits)
    else:
        _v2(paths, "/")
        _write(paths.cgroup, memory__max=str(8 * GIB), memory__current=str(5 * GIB), memory__stat=stat)
    assert _memory(paths) == (8 * GIB, 5 * GIB, "cgroup")


def test_a_group_beyond_its_limit_has_nothing_free(paths: SystemPaths) -> None:
    _v2(paths, "/")
    _write(paths.cgroup, memory__max=str(GIB), memory__current=str(2 * GIB))
    assert _memory(paths) == (GIB, 0, "cgroup")


def test_a_hierarchy_that_is_not_mounted_does_not_limit(paths: SystemPaths) -> None:
    _write(paths.proc / "self", cgroup="5:cpu,cpuacct:/box\n4:memory:/box")
    assert _memory(paths) == (16 * GIB, 10 * GIB, "physical")
    assert read_cores(paths, frozenset({0, 1})).usable == 2


def test_files_of_nonsense_do_not_limit(paths: SystemPaths) -> None:
    _write(paths.proc / "self", cgroup="nonsense\n0::/\n4:memory:/")
    _write(paths.cgroup, cgroup__controllers="", memory__max="lots", memory__current="", cpu__max="max 0")
    _write(paths.cgroup / "memory", memory__limit_in_bytes="\xff", memory__usage_in_bytes="1")
    assert _memory(paths) == (16 * GIB, 10 * GIB, "physical")
    assert read_cores(paths, frozenset({0, 1})).usable == 2


def _topology(paths: SystemPaths, *siblings: str, name: str = "core_cpus_list") -> None:
    for number, text in enumerate(siblings):
        _write(paths.cpus / f"cpu{number}" / "topology", **{name: text})


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_siblings_share_a_core(paths: SystemPaths, name: str) -> None:
    _topology(paths, "0,2", "1,3", "0,2", "1,3", name=name)
    cores = read_cores(paths, frozenset({0, 1, 2, 3}))
    assert cores == CpuCores(logical=4, physical=2, usable=4)
    assert cores.compute_threads == 2


def test_only_cores_of_the_affinity_mask_count(paths: SystemPaths) -> None:
    _topology(paths, "0-1", "0-1", "2-3", "2-3")
    assert read_cores(paths, frozenset({2, 3})) == CpuCores(logical=2, physical=1, usable=2)


def test_a_system_without_affinity_masks_offers_all_processors(
    paths: SystemPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert read_cores(paths).logical == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert read_cores(paths).logical == 1


def test_without_topology_there_are_no_more_cores_than_processors(
    paths: SystemPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    assert read_cores(paths, frozenset({0, 1})).physical == 2
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    assert read_cores(paths, frozenset({0, 1, 2})).physical == 3


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("max 100000", 4), ("200000 100000", 2), ("199999 100000", 1), ("1000 100000", 1), ("900000 100000", 4)],
)
def test_a_quota_cuts_the_usable_processors(paths: SystemPaths, quota: str, usable: int) -> None:
    _topology(paths, "0", "1", "2", "3")
    _v2(paths, "/outer/inner")
    _write(paths.cgroup / "outer", cpu__max=quota)
    _write(paths.cgroup / "outer/inner", cpu__max="max 100000")
    cores = read_cores(paths, frozenset(range(4)))
    assert cores.usable == usable
    assert cores.compute_threads == usable


@pytest.mark.parametrize(("quota_us", "usable"), [(-1, 4), (150_000, 1), (300_000, 3)])
def test_a_version_1_quota_cuts_the_usable_processors(paths: SystemPaths, quota_us: int, usable: int) -> None:
    _topology(paths, "0", "1", "2", "3")
    _write(paths.proc / "self", cgroup="4:cpu,cpuacct:/box")
    box = paths.cgroup / "cpu,cpuacct" / "box"
    _write(box, cpu__cfs_quota_us=str(quota_us), cpu__cfs_period_us="100000")
    assert read_cores(paths, frozenset(range(4))).usable == usable


def test_a_hybrid_mount_is_read_in_both_generations(paths: SystemPaths) -> None:
    _write(paths.proc / "self", cgroup="4:memory:/a\n0::/b")
    _write(paths.cgroup / "memory/a", memory__limit_in_bytes=str(8 * GIB), memory__usage_in_bytes="0")
    _write(paths.cgroup / "unified/b", memory__max=str(6 * GIB), memory__current="0")
    assert _memory(paths) == (6 * GIB, 6 * GIB, "cgroup")
