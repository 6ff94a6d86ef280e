"""The constraints name every distribution that the project, its tests and their builds bring along."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
BUILD = {"hatchling", "scikit-build-core", "cmake", "ninja"}
NOT_OURS = {"pip", "setuptools", "wheel"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def needed(requirement: Requirement, seen: dict[str, set[str]]) -> None:
    """Add what `requirement` brings along in this Python, with the extras it asks for."""
    name = canonical(requirement.name)
    extras = {"", *requirement.extras} - seen.get(name, set())
    if not extras or name in NOT_OURS:
        return
    seen.setdefault(name, set()).update(extras)
    for text in distribution(name).requires or ():
        child = Requirement(text)
        if any(child.marker is None or child.marker.evaluate({"extra": extra}) for extra in extras):
            needed(child, seen)


def test_everything_that_is_installed_is_pinned_to_what_is_installed() -> None:
    pins = {
        canonical(pin.name): str(pin.specifier)
        for pin in constraints()
        if pin.marker is None or pin.marker.evaluate()
    }
    seen: dict[str, set[str]] = {}
    needed(Requirement("runner[dev]"), seen)
    installed = {name: f"=={distribution(name).version}" for name in seen if name != "runner"}
    assert installed == {name: pins.get(name) for name in installed}


def test_each_pin_is_exact_and_unique_for_each_python() -> None:
    for version in ("3.11", "3.12", "3.13"):
        names = [
            canonical(pin.name)
            for pin in constraints()
            if pin.marker is None or pin.marker.evaluate({"python_version": version})
        ]
        assert len(names) == len(set(names))
        assert set(names) >= BUILD
    for pin in constraints():
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier))


def test_the_pins_fit_what_the_project_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for version in ("3.11", "3.12", "3.13"):
        pins = {
            canonical(pin.name): str(pin.specifier).removeprefix("==")
            for pin in constraints()
            if pin.marker is None or pin.marker.evaluate({"python_version": version})
        }
        for requirement in map(Requirement, wanted):
            if requirement.marker is None or requirement.marker.evaluate({"python_version": version}):
                assert requirement.specifier.contains(pins[canonical(requirement.name)]), (
                    version,
                    requirement,
                )
