"""Which devices a worker may see, as variables that the engine's back ends read when they are initialised.

Pure. A spare worker is started before anybody knows what it will load, so these do not come with its
environment: they travel in `LoadModel`, and the worker sets them before it touches a back end. Only the names
below can be set that way. Used by `runner.wire.schema` and the worker.
"""

from __future__ import annotations

import re

import attrs

DEVICE_VARIABLES = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "GGML_VK_VISIBLE_DEVICES",
        "ONEAPI_DEVICE_SELECTOR",
    }
)
VALUE_LENGTH_MAX = 1024
_VALUE = re.compile(r"[A-Za-z0-9_,.:;*!-]*", re.ASCII)


@attrs.frozen
class DevicePin:
    """One variable and its value, such as `CUDA_VISIBLE_DEVICES` and `GPU-8c2…,GPU-91b…`.

    An empty value hides all devices of that kind. Raises ValueError for any other variable, and for values
    that are not lists of indices and identifiers.
    """

    variable: str
    value: str

    def __attrs_post_init__(self) -> None:
        if self.variable not in DEVICE_VARIABLES:
            raise ValueError(f"{self.variable} does not choose devices")
        if len(self.value) > VALUE_LENGTH_MAX or not _VALUE.fullmatch(self.value):
            raise ValueError(f"not a list of devices for {self.variable}")
