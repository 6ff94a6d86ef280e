"""Names for what measured sizes depend on beside the model: this machine, and this build of the engine.

Two names are equal when sizes measured under one hold under the other. Nothing secret goes in, and only
digests come out. Reads a few small files.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_DEVICES = Path("/dev")
_CPUINFO_BYTES = 64 * 1024
_FEATURES = ("flags", "Features")  # x86, ARM
_DIGITS = 12


def machine_identity(
    environment: Mapping[str, str], *, cpuinfo: Path = _CPUINFO, devices: Path = _DEVICES
) -> str:
    """The processor's instructions, which decide what is repacked, and the GPUs that `environment` (of the
    variables that reach a worker) lets be seen."""
    nodes = sorted(path.name for path in devices.glob("nvidia[0-9]*"))
    variables = [f"{name}={value}" for name, value in sorted(environment.items())]
    return _digest([platform.machine(), _cpu_features(cpuinfo), *nodes, *variables])


def installation_identity(package: str) -> str:
    """`llama-cpp-python 0.3.36 1a2b3c4d5e6f`: version, and which build of it; empty when it is not there.

    The same version compiles to different engines (with CUDA, without); its libraries' sizes and times tell
    them apart.
    """
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return ""
    return f"{package} {found.version} {_digest(_libraries(found.files or ()))}"


def _libraries(files: Iterable[PackagePath]) -> list[str]:
    told = []
    for file in files:
        if str(file).endswith((".so", ".dylib")):
            try:
                status = Path(str(file.locate())).stat()
            except OSError:
                continue
            told.append(f"{file} {status.st_size} {status.st_mtime_ns}")
    return sorted(told)


def _cpu_features(cpuinfo: Path) -> str:
    try:
        with cpuinfo.open("rb") as file:
            text = file.read(_CPUINFO_BYTES).decode("ascii", "replace")
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in _FEATURES:
            return value.strip()
    return ""


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]
