"""Models of a scripted hub through a real daemon and its commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest

from scripts.tiny_gguf import TinyModel, write_tiny_gguf
from tests.support.daemon import RunningDaemon, running_daemon
from tests.support.hub import ScriptedHub, ScriptedRepository, scripted_hub

TOKEN = "hf_tokenCanary41"
SMALL, LARGE, GATED = (TinyModel(name=name, context_length=8192) for name in ("Small", "Large", "Gated"))


@attrs.frozen(kw_only=True)
class Place:
    hub: ScriptedHub
    daemon: RunningDaemon


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A hub with a few repositories, and a daemon that takes it for the only one."""
    root = tmp_path_factory.mktemp("hub")
    content = {
        model.name: write_tiny_gguf(root / f"{model.name}.gguf", model).read_bytes()
        for model in (SMALL, LARGE, GATED)
    }
    with scripted_hub() as hub:
        files = {
            "Tiny-Q4_0.gguf": content["Small"],
            "Tiny-Q8_0.gguf": content["Large"],
            "LICENSE": b"Do as you like.\n",
            "README.md": b"# Tiny",
        }
        hub.add(ScriptedRepository(name="Org/Tiny-GGUF", files=files))
        gated = {"a-Q4_0.gguf": content["Gated"]}
        hub.add(ScriptedRepository(name="Org/Gated-GGUF", files=gated, token=TOKEN, gated=True))
        hub.add(
            ScriptedRepository(name="Org/Tensors", files={"model.safetensors": b"x", "config.json": b"{}"})
        )
        settings = {
            "HF_ENDPOINT": hub.url,
            "RUNNER_PRIVATE_REGISTRIES": urlsplit(hub.content_url).netloc,
        }
        (root / "daemon").mkdir()
        with running_daemon(root / "daemon", **settings) as daemon:
            yield Place(hub=hub, daemon=daemon)


def listed(place: Place) -> list[str]:
    found: list[dict[str, Any]] = json.loads(place.daemon.runner("ctl", "ls", "--json").stdout)
    return sorted(str(model["name"]) for model in found)


def test_a_quantisation_is_pulled_run_and_shown_with_where_it_came_from(place: Place) -> None:
    place.daemon.runner("ctl", "pull", "hf.co/Org/Tiny-GGUF:Q8_0")
    assert "huggingface.co/org/tiny-gguf:Q8_0" in listed(place)
    assert place.daemon.runner("run", "hf.co/Org/Tiny-GGUF:Q8_0", "hello").stdout
    shown = place.daemon.runner("ctl", "inspect", "hf.co/org/tiny-gguf:Q8_0", "--json").stdout
    assert [layer["filename"] for layer in json.loads(shown)["layers"]] == ["Tiny-Q8_0.gguf", "LICENSE"]
    place.daemon.runner("ctl", "unload", "--all")
    place.daemon.runner("ctl", "rm", "hf.co/Org/Tiny-GGUF:Q8_0")


def test_running_a_model_that_is_not_there_pulls_the_preferred_quantisation(place: Place) -> None:
    done = place.daemon.runner("run", "hf.co/Org/Tiny-GGUF", "hello")
    assert done.stdout
    assert "pull" in done.stderr
    shown = place.daemon.runner("ctl", "inspect", "hf.co/Org/Tiny-GGUF", "--json").stdout
    assert json.loads(shown)["layers"][0]["filename"] == "Tiny-Q4_0.gguf"
    place.daemon.runner("ctl", "unload", "--all")
    place.daemon.runner("ctl", "rm", "hf.co/Org/Tiny-GGUF")


def test_the_case_that_was_typed_counts(place: Place) -> None:
    done = place.daemon.runner("ctl", "pull", "hf.co/org/tiny-gguf:Q8_0", check=False)
    assert done.returncode != 0
    assert "upper and lower case count" in done.stderr


def test_an_unknown_quantisation_lists_those_there_are(place: Place) -> None:
    done = place.daemon.runner("ctl", "pull", "hf.co/Org/Tiny-GGUF:Q6_K", check=False)
    assert done.returncode != 0
    assert "it has Q4_0, Q8_0" in done.stderr


def test_a_gated_repository_says_what_to_do_and_takes_a_token_of_the_commands_environment(
    place: Place,
) -> None:
    name = "hf.co/Org/Gated-GGUF"
    refused = place.daemon.runner("ctl", "pull", name, check=False)
    assert refused.returncode != 0
    assert "https://huggingface.co/Org/Gated-GGUF" in refused.stderr
    assert "HF_TOKEN" in refused.stderr
    admitted = attrs.evolve(place.daemon, environment={**place.daemon.environment, "HF_TOKEN": TOKEN})
    admitted.runner("ctl", "pull", name)
    assert "huggingface.co/org/gated-gguf" in listed(place)
    place.daemon.runner("ctl", "rm", name)


def test_weights_in_another_format_say_what_can_be_loaded(place: Place) -> None:
    done = place.daemon.runner("ctl", "pull", "hf.co/Org/Tensors", check=False)
    assert done.returncode != 0
    assert "GGUF files can be loaded" in done.stderr


def test_a_model_is_looked_at_where_it_is_and_nothing_is_fetched(place: Place) -> None:
    before = len(place.hub.seen("content"))
    shown = place.daemon.runner("ctl", "inspect", "--remote", "hf.co/Org/Tiny-GGUF:Q8_0", "--json").stdout
    assert "Tiny-Q8_0.gguf" in shown
    assert len(place.hub.seen("content")) == before


def test_a_model_of_the_hub_is_no_place_to_push_to(place: Place, tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "own.gguf", attrs.evolve(SMALL, name="Own"))
    place.daemon.package("own", file)
    done = place.daemon.runner("ctl", "push", "own", "hf.co/Org/Own-GGUF:Q4_0", check=False)
    assert done.returncode != 0
    assert "hub" in done.stderr
    place.daemon.runner("ctl", "rm", "own")
