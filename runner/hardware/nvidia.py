"""Memory of NVIDIA GPUs, asked of the driver through NVML (the package `nvidia-ml-py`).

Without the package, the library or the driver there is simply no GPU. Devices are named as llama.cpp's CUDA
back end names them, so that footprints and budgets speak of the same thing; for that the order has to be
NVML's, by PCI bus, which `actors/environment.py` makes it for workers. Parts of a GPU (MIG) are not told
apart: where one is named, no device is seen from there on.

Imports nothing of ours but values. Read on in `probe.py`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import attrs

from runner.hardware.device import DeviceMemory

VISIBLE_DEVICES: Final = "CUDA_VISIBLE_DEVICES"


class Nvml(Protocol):
    """What we use of the module `pynvml`; every call may raise `NVMLError`."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> Any: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes: ...
    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Sequence[Any]: ...


def load_nvml() -> Nvml | None:
    """The binding, None where the package is not installed."""
    try:
        binding: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    return binding  # type: ignore[no-any-return]  # a module; the protocol says what of it is used


@attrs.define
class NvidiaProber:
    """Asks again at every call; a library that is not there is asked for once."""

    _load: Callable[[], Nvml | None] = load_nvml
    _environment: Mapping[str, str] = attrs.field(factory=lambda: os.environ)
    _nvml: Nvml | None = attrs.field(default=None, init=False)
    _is_absent: bool = attrs.field(default=False, init=False)

    def read(self) -> tuple[DeviceMemory, ...]:
        """The devices that a worker would see, in its order; empty when there are none. Takes milliseconds.

        A device that does not tell its memory is left out, and a driver that went away leaves all out.
        """
        nvml = self._started()
        if nvml is None:
            return ()
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        except nvml.NVMLError:
            self._nvml = None  # after the driver was loaded anew it has to be started again
            return ()
        visible = visible_indices(self._environment.get(VISIBLE_DEVICES), uuids)
        read = [_read(nvml, handles[index], f"CUDA{number}") for number, index in enumerate(visible)]
        return tuple(device for device in read if device is not None)

    def _started(self) -> Nvml | None:
        if self._nvml is None and not self._is_absent:
            nvml = self._load()
            if nvml is None:
                self._is_absent = True
                return None
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as error:
                self._is_absent = type(error).__name__ == "NVMLError_LibraryNotFound"
                return None
            self._nvml = nvml
        return self._nvml


def visible_indices(variable: str | None, uuids: Sequence[str]) -> tuple[int, ...]:
    """Which devices, by their index, a process with this `CUDA_VISIBLE_DEVICES` sees, in its order.

    Entries are indices or beginnings of identifiers; the first one that names no device hides itself and all
    that follow (CUDA programming guide, environment variables). So does one that names a device again.
    """
    if variable is None:
        return tuple(range(len(uuids)))
    seen: list[int] = []
    for entry in variable.split(","):
        index = _index_of(entry.strip(), uuids)
        if index is None or index in seen:
            break
        seen.append(index)
    return tuple(seen)


def _index_of(entry: str, uuids: Sequence[str]) -> int | None:
    if entry.isascii() and entry.isdecimal():
        return int(entry) if int(entry) < len(uuids) else None
    if not entry.startswith("GPU-"):
        return None
    matching = [index for index, uuid in enumerate(uuids) if uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def _read(nvml: Nvml, handle: Any, device: str) -> DeviceMemory | None:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = _text(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:  # a device without memory of its own does not tell
        return None
    return DeviceMemory(
        device=device,
        name=name,
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        limited_by="physical",
        process_bytes=_process_bytes(nvml, handle),
    )


def _process_bytes(nvml: Nvml, handle: Any) -> Mapping[int, int]:
    """By process id, of those whose use is told: containers and some drivers hide others."""
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return {}
    return {int(one.pid): int(one.usedGpuMemory) for one in processes if one.usedGpuMemory}


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
