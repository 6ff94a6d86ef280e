"""What a worker process gets of the daemon's environment: an allowlist, and nothing else (W01).

Functions of values, but for what the running interpreter says of itself. Imports nothing of ours but the name
of the package. Used by `actors/process.py`.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import runner

PASSED_ON: Final = (
    # where the loader finds shared libraries, and llama-cpp-python its own
    "LD_LIBRARY_PATH",
    "LLAMA_CPP_LIB_PATH",
    # which devices exist: decided by whoever started the daemon
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "GGML_VK_VISIBLE_DEVICES",
    "VK_DRIVER_FILES",
    "ONEAPI_DEVICE_SELECTOR",
    # chat templates print today's date
    "TZ",
)

ALWAYS: Final[Mapping[str, str]] = {
    "LC_ALL": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONUNBUFFERED": "1",  # what was printed before a crash is in the tail
    "PYTHONFAULTHANDLER": "1",  # and so is the Python side of a native crash
    # Two engines that spin at barriers without bound fall from 70 to 0.9 tokens/s beside each other; a
    # bounded spin costs little alone. Read once, when the library loads, so it must be here.
    "GOMP_SPINCOUNT": "5000",
    # numpy's BLAS would start a thread per core, uncounted; the engine's own threads are counted.
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}


def worker_environment(inherited: Mapping[str, str], *, directory: str) -> dict[str, str]:
    """The whole environment of a worker; of `inherited` only what `PASSED_ON` names.

    Home and temporary directory are the worker's own empty one, so that no library finds the user's. PATH
    stays out: a worker starts no programs. Modules are found where the daemon finds them (`import_paths`).
    """
    environment = {name: inherited[name] for name in PASSED_ON if name in inherited}
    environment |= ALWAYS
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # NVML's, so that CUDA0 is the same for both
    environment |= {"HOME": directory, "TMPDIR": directory}
    if paths := import_paths(inherited.get("PYTHONPATH", "")):
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    if _uses_user_site():
        environment["PYTHONUSERBASE"] = site.getuserbase()
    return environment


def interpreter_options() -> tuple[str, ...]:
    """`-P` keeps the working directory out of the import path, `-s` the user's site-packages."""
    return ("-P",) if _uses_user_site() else ("-P", "-s")


def import_paths(pythonpath: str) -> list[str]:
    """What a worker's interpreter must be told in order to import what the daemon imports.

    1. Where this package lies, unless the interpreter looks there anyway: a source checkout, say.
    2. Of `pythonpath`, the daemon's variable, the absolute entries that exist.
    Not `sys.path` as it stands: it begins with the directory of the script, or the user's current one.
    """
    home = str(Path(runner.__file__).parent.parent)
    known = {*site.getsitepackages(), site.getusersitepackages()}
    entries = [] if home in known else [home]
    entries += [entry for entry in pythonpath.split(os.pathsep) if Path(entry).is_absolute()]
    return [entry for entry in dict.fromkeys(entries) if Path(entry).is_dir()]


def _uses_user_site() -> bool:
    return bool(site.ENABLE_USER_SITE) and site.getusersitepackages() in sys.path
