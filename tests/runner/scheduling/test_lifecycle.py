"""States of an instance: the table is complete, and everything outside it is refused."""

from __future__ import annotations

import itertools

import pytest

from runner.scheduling.lifecycle import (
    HOLDING_MEMORY,
    TRANSITIONS,
    IllegalTransition,
    InstanceState,
    Trigger,
    diagram,
    next_state,
)


def test_every_state_has_a_row_and_every_trigger_a_use() -> None:
    assert set(TRANSITIONS) == set(InstanceState)
    assert {trigger for row in TRANSITIONS.values() for trigger in row} == set(Trigger)


def test_every_pair_leads_where_the_table_says_or_is_refused() -> None:
    for state, trigger in itertools.product(InstanceState, Trigger):
        if trigger in TRANSITIONS[state]:
            assert next_state(state, trigger) is TRANSITIONS[state][trigger]
        else:
            with pytest.raises(IllegalTransition, match=state.value):
                next_state(state, trigger)


def test_every_state_can_be_reached_and_left_again() -> None:
    reached, frontier = {InstanceState.UNLOADED}, [InstanceState.UNLOADED]
    while frontier:
        for target in TRANSITIONS[frontier.pop()].values():
            if target not in reached:
                reached.add(target)
                frontier.append(target)
    assert reached == set(InstanceState)
    assert all(TRANSITIONS[state] for state in InstanceState)


def test_L08_memory_is_given_back_only_by_the_end_of_the_process() -> None:
    for state in HOLDING_MEMORY:
        leaving = {trigger for trigger, target in TRANSITIONS[state].items() if target not in HOLDING_MEMORY}
        assert leaving == {Trigger.GONE}


def test_the_diagram_draws_every_transition_once() -> None:
    arrows = [line for line in diagram().splitlines() if "-->" in line and "[*]" not in line]
    assert len(arrows) == sum(len(row) for row in TRANSITIONS.values())
    assert diagram().startswith("stateDiagram-v2\n")
    assert "    ready --> stopping: " in diagram()
