"""What a worker process gets of the daemon's environment: an allowlist, and nothing else (THREATS W01).

Functions of values, but for what the running interpreter says about its own import path. Imports nothing of
ours. Used by `actors/process.py`.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

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
    environment |= {"HOME": directory, "TMPDIR": directory}
    if paths := import_paths(sys.path):
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    if _uses_user_site():
        environment["PYTHONUSERBASE"] = site.getuserbase()
    return environment


def interpreter_options() -> tuple[str, ...]:
    """`-P` keeps the working directory out of the import path, `-s` the user's site-packages."""
    return ("-P",) if _uses_user_site() else ("-P", "-s")


def import_paths(entries: Iterable[str]) -> list[str]:
    """Those of the import path `entries` that a fresh interpreter would not have: a source checkout, say.

    Meant for `sys.path` rather than PYTHONPATH: empty, relative and missing entries never reach a worker, and
    what the daemon imported from, the worker imports from.
    """
    known = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    known |= {str(Path(stdlib, "lib-dynload")) for stdlib in tuple(known)}
    known |= {*site.getsitepackages(), site.getusersitepackages()}
    added = [entry for entry in dict.fromkeys(entries) if entry not in known and Path(entry).is_absolute()]
    return [entry for entry in added if Path(entry).is_dir()]


def _uses_user_site() -> bool:
    return bool(site.ENABLE_USER_SITE) and site.getusersitepackages() in sys.path
