#!/usr/bin/env python3
"""Play histories of requests on a virtual clock, and print how the scheduler fares beside first come, first
served.

    scripts/simulate.py                 every scenario
    scripts/simulate.py flood loops     those whose names contain one of these words

Of two or three models one fits at a time. A load takes 3 s and a request 1 s, unless the scenario says
otherwise; eight requests of one model run side by side.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import attrs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runner.domain.device_bytes import DeviceBytes
from runner.scheduling.core import SchedulerCore
from runner.scheduling.rules import SchedulingRules
from runner.scheduling.simulator import (
    Arrival,
    FirstComeFirstServed,
    Outcome,
    SimulatedModel,
    simulate,
)

BUDGET = DeviceBytes.on_host(100)
FOOTPRINT = DeviceBytes.on_host(80)


@attrs.frozen(kw_only=True)
class Scenario:
    name: str
    arrivals: tuple[Arrival, ...]
    load_s: float = 3.0

    def models(self) -> list[SimulatedModel]:
        names = sorted({arrival.model for arrival in self.arrivals})
        return [SimulatedModel(name=name, footprint=FOOTPRINT, load_s=self.load_s) for name in names]


def in_turns(names: str, count: int, every_s: float) -> tuple[Arrival, ...]:
    return tuple(Arrival(number * every_s, names[number % len(names)]) for number in range(count))


def at_random(seed: int, seconds: float, **counts: int) -> tuple[Arrival, ...]:
    source = random.Random(seed)
    some = [Arrival(source.uniform(0, seconds), name) for name, count in counts.items() for _ in range(count)]
    return tuple(sorted(some, key=lambda arrival: arrival.at_s))


SCENARIOS = (
    Scenario(name="A-B flood, 400 in 100 s", arrivals=in_turns("ab", 400, 0.25)),
    Scenario(name="A-B flood, 200 in 200 s", arrivals=in_turns("ab", 200, 1.0)),
    Scenario(name="A-B flood, loads of 12 s, 400 in 200 s", arrivals=in_turns("ab", 400, 0.5), load_s=12.0),
    Scenario(name="A-B-C flood, 300 in 90 s", arrivals=in_turns("abc", 300, 0.3)),
    Scenario(name="A-B at once, 120", arrivals=in_turns("ab", 120, 0.0)),
    Scenario(name="70 to 30 at random, 500 in 200 s", arrivals=at_random(1, 200.0, a=350, b=150)),
    Scenario(
        name="two loops, 100 each, 0.1 s between",
        arrivals=(Arrival(0.0, "a", 0.1, 100), Arrival(0.01, "b", 0.1, 100)),
    ),
    Scenario(
        name="eight loops of A, one of B every 5 s",
        arrivals=(*(Arrival(0.0, "a", 0.1, 100) for _ in range(8)), Arrival(5.0, "b", 5.0, 20)),
    ),
    Scenario(name="one client, A and B in turns", arrivals=in_turns("ab", 50, 6.0)),
)


def main() -> None:
    words = sys.argv[1:]
    rules = SchedulingRules()
    print(f"no request for another model is to wait longer than {rules.swap_wait_s:g} s\n")
    print(
        f"{'':40}  {'requests':>8}  {'swaps/min':>9}  {'total s':>8}  {'mean wait s':>11}  {'longest s':>9}"
    )
    for scenario in SCENARIOS:
        if words and not any(word in scenario.name for word in words):
            continue
        models = scenario.models()
        ours = simulate(SchedulerCore(rules, budget=BUDGET), models, scenario.arrivals)
        theirs = simulate(FirstComeFirstServed(rules.leases_per_model), models, scenario.arrivals)
        print(scenario.name)
        print(_row("scheduler", ours, len(models)))
        print(_row("first come, first served", theirs, len(models)))


def _row(label: str, outcome: Outcome, models: int) -> str:
    refused = f"  {outcome.refused} refused" if outcome.refused else ""
    numbers = (
        f"{outcome.swaps_per_minute(models):9.1f}  {outcome.took_s:8.1f}  {outcome.mean_wait_s:11.1f}"
        f"  {outcome.longest_wait_s:9.1f}"
    )
    return f"  {label:38}  {len(outcome.served):8}  {numbers}{refused}"


if __name__ == "__main__":
    main()
