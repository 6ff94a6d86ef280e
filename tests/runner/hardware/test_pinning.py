"""Only variables that choose devices can be set, and only to lists of devices."""

from __future__ import annotations

import pytest

from actors.environment import PASSED_ON
from runner.hardware.pinning import DEVICE_VARIABLES, VALUE_LENGTH_MAX, DevicePin


@pytest.mark.parametrize("value", ["", "0", "0,1", "GPU-8c2a-11,GPU-91b0", "level_zero:0,1;opencl:*", "-1"])
def test_a_list_of_devices_is_a_value(value: str) -> None:
    assert DevicePin("CUDA_VISIBLE_DEVICES", value).value == value


@pytest.mark.parametrize("value", ["a b", "0\n", "0\0", "$HOME", "/dev/nvidia0", "é"])
def test_W01_anything_else_is_not(value: str) -> None:
    with pytest.raises(ValueError, match="not a list of devices"):
        DevicePin("CUDA_VISIBLE_DEVICES", value)


def test_W01_a_value_has_a_longest_length() -> None:
    assert DevicePin("HIP_VISIBLE_DEVICES", "1" * VALUE_LENGTH_MAX)
    with pytest.raises(ValueError, match="not a list of devices"):
        DevicePin("HIP_VISIBLE_DEVICES", "1" * (VALUE_LENGTH_MAX + 1))


@pytest.mark.parametrize("variable", ["LD_PRELOAD", "PATH", "cuda_visible_devices", ""])
def test_W01_no_other_variable_can_be_set(variable: str) -> None:
    with pytest.raises(ValueError, match="does not choose devices"):
        DevicePin(variable, "0")


def test_what_can_be_pinned_is_what_a_worker_would_inherit() -> None:
    assert set(PASSED_ON) > DEVICE_VARIABLES
