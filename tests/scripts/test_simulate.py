"""The table of simulated histories."""

from __future__ import annotations

import pytest

from scripts import simulate
from scripts.simulate import SCENARIOS


def test_the_chosen_scenarios_are_a_table_beside_first_come_first_served(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["simulate.py", "at once"])
    simulate.main()
    lines = capsys.readouterr().out.splitlines()
    assert "30 s" in lines[0] and "swaps/min" in lines[2]
    [name, ours, theirs] = lines[3:]
    assert name == "A-B at once, 120"
    assert ours.split()[:2] == ["scheduler", "120"] and theirs.startswith("  first come, first served")


def test_scenarios_have_names_of_their_own() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
