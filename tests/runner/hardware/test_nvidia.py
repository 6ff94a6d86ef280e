"""GPUs as the driver's library tells of them; here a scripted one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from runner.hardware.nvidia import NvidiaProber, load_nvml, visible_indices

UUIDS = ("GPU-11aa", "GPU-22bb", "GPU-22cc")


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):  # the library's name
    pass


@attrs.define
class ScriptedNvml:
    """Two GPUs. `faults` are calls that fail."""

    NVMLError: type[Exception] = NVMLError
    faults: dict[str, Exception] = attrs.field(factory=dict)
    starts: int = 0
    names: tuple[str | bytes, ...] = ("NVIDIA A", b"NVIDIA B")

    def _call(self, name: str) -> None:
        if name in self.faults:
            raise self.faults[name]

    def nvmlInit(self) -> None:  # all of these are the library's names
        self.starts += 1
        self._call("init")

    def nvmlDeviceGetCount(self) -> int:
        self._call("count")
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return UUIDS[handle]

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.names[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._call(f"memory {handle}")
        return SimpleNamespace(total=1000 + handle, free=400, used=600)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        self._call("processes")
        return [SimpleNamespace(pid=7, usedGpuMemory=300), SimpleNamespace(pid=8, usedGpuMemory=None)]


def prober(nvml: ScriptedNvml | None, **environment: str) -> NvidiaProber:
    return NvidiaProber(load=lambda: nvml, environment=environment)


def test_devices_have_the_engines_names_and_tell_who_uses_them() -> None:
    first, second = prober(ScriptedNvml()).read()
    assert (first.device, first.name, first.total_bytes, first.free_bytes) == ("CUDA0", "NVIDIA A", 1000, 400)
    assert (second.device, second.name, second.total_bytes) == ("CUDA1", "NVIDIA B", 1001)
    assert first.process_bytes == {7: 300}


def test_a_worker_sees_what_the_environment_shows_in_its_order() -> None:
    first, second = prober(ScriptedNvml(), CUDA_VISIBLE_DEVICES="1,0").read()
    assert [(one.device, one.name) for one in (first, second)] == [
        ("CUDA0", "NVIDIA B"),
        ("CUDA1", "NVIDIA A"),
    ]
    assert prober(ScriptedNvml(), CUDA_VISIBLE_DEVICES="").read() == ()


@pytest.mark.parametrize(
    ("variable", "indices"),
    [
        (None, (0, 1, 2)),
        ("2,0", (2, 0)),
        (" 1 , 2 ", (1, 2)),
        ("GPU-22cc,GPU-1", (2, 0)),
        ("", ()),
        ("-1", ()),
        ("0,-1,2", (0,)),
        ("0,3,1", (0,)),
        ("GPU-22,0", ()),
        ("1,1,2", (1,)),
        ("MIG-11aa", ()),
        ("NoDevFiles", ()),
        ("٠", ()),
    ],
)
def test_the_first_entry_that_names_no_device_hides_all_that_follow(
    variable: str | None, indices: tuple[int, ...]
) -> None:
    assert visible_indices(variable, UUIDS) == indices


def test_without_the_package_or_the_library_there_is_no_gpu_and_nobody_asks_again() -> None:
    asked: list[int] = []
    absent = NvidiaProber(load=lambda: asked.append(1))  # type: ignore[func-returns-value]  # None is meant
    assert absent.read() == absent.read() == ()
    assert len(asked) == 1
    nvml = ScriptedNvml(faults={"init": NVMLError_LibraryNotFound()})
    without_library = prober(nvml)
    assert without_library.read() == without_library.read() == ()
    assert nvml.starts == 1


def test_a_driver_that_is_not_there_yet_is_asked_again() -> None:
    nvml = ScriptedNvml(faults={"init": NVMLError("driver not loaded")})
    later = prober(nvml)
    assert later.read() == ()
    nvml.faults.clear()
    assert len(later.read()) == 2


def test_a_driver_that_went_away_takes_its_devices_and_is_started_again() -> None:
    nvml = ScriptedNvml()
    prober_ = prober(nvml)
    assert len(prober_.read()) == 2
    nvml.faults["count"] = NVMLError("lost")
    assert prober_.read() == ()
    nvml.faults.clear()
    assert len(prober_.read()) == 2 and nvml.starts == 2


def test_a_device_that_tells_no_memory_is_left_out_and_one_that_tells_no_processes_has_none() -> None:
    nvml = ScriptedNvml(faults={"memory 0": NVMLError("not supported"), "processes": NVMLError("no")})
    [device] = prober(nvml).read()
    assert (device.device, device.process_bytes) == ("CUDA1", {})


def test_the_installed_binding_offers_what_is_used_of_it() -> None:
    binding = load_nvml()
    assert binding is not None
    for name in (
        "NVMLError",
        "NVMLError_LibraryNotFound",
        "nvmlInit",
        "nvmlDeviceGetCount",
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetComputeRunningProcesses",
    ):
        assert hasattr(binding, name), name


def test_asking_this_machine_raises_nothing() -> None:
    assert isinstance(NvidiaProber().read(), tuple)
