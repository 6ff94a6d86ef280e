"""Bytes per device add, subtract and compare as they should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.device_bytes import DeviceBytes

BOTH = DeviceBytes({"cpu": 5, "CUDA0": 7})
amounts = st.builds(DeviceBytes, st.dictionaries(st.sampled_from(["cpu", "CUDA0", "CUDA1"]), st.integers()))


def test_a_device_that_is_not_named_holds_nothing_and_nothing_is_not_named() -> None:
    assert (BOTH["cpu"], BOTH["CUDA1"]) == (5, 0)
    assert DeviceBytes({"cpu": 0}) == DeviceBytes() and not DeviceBytes({"cpu": 0})
    assert BOTH.devices == ("CUDA0", "cpu") and BOTH.total_bytes == 12
    assert hash(DeviceBytes({"CUDA0": 7, "cpu": 5})) == hash(BOTH)
    assert DeviceBytes.on_host(3).as_dict() == {"cpu": 3}


@given(amounts, amounts)
def test_what_was_added_can_be_taken_away(one: DeviceBytes, other: DeviceBytes) -> None:
    assert one + other - other == one
    assert one + other == other + one
    assert one - one == DeviceBytes()
    assert (one - one.positive()).positive() == DeviceBytes()


@pytest.mark.parametrize(
    ("room", "missing"),
    [
        (DeviceBytes({"cpu": 5, "CUDA0": 7}), {}),
        (DeviceBytes({"cpu": 6, "CUDA0": 6}), {"CUDA0": 1}),
        (DeviceBytes({"cpu": -2, "CUDA0": 7}), {"cpu": 7}),
        (DeviceBytes({"cpu": 5, "CUDA0": 7, "CUDA1": -9}), {}),
    ],
)
def test_what_is_missing_is_missing_on_devices_that_are_needed(
    room: DeviceBytes, missing: dict[str, int]
) -> None:
    assert BOTH.missing_in(room).as_dict() == missing
    assert BOTH.fits_in(room) is (missing == {})


def test_people_read_devices_only_where_there_are_gpus() -> None:
    assert str(DeviceBytes.on_host(3 * 2**30)) == "3.0 GiB"
    assert str(DeviceBytes({"cpu": 2**20, "CUDA0": 2**30})) == "1.0 GiB of CUDA0, 1.0 MiB of cpu"
    assert repr(BOTH) == "<DeviceBytes {'CUDA0': 7, 'cpu': 5}>"
