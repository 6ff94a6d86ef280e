"""Embeddings through a daemon and a worker, on the scripted engine: by generating models and encoders."""

from __future__ import annotations

import base64
import json
import struct
import urllib.error
from typing import Any

import pytest

from runner.engine.fake_embedding import DIMENSIONS
from scripts.tiny_gguf import TinyModel, write_tiny_gguf
from tests.support.daemon import RunningDaemon

MANY = 300


@pytest.fixture(scope="module")
def encoder(daemon: RunningDaemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = TinyModel(name="[[load encoder]]", context_length=512)
    daemon.package("encoder", write_tiny_gguf(tmp_path_factory.mktemp("encoder") / "model.gguf", model))
    return "encoder"


def refused(daemon: RunningDaemon, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        daemon.post(path, body)
    return caught.value.code, json.loads(caught.value.read())["error"]


@pytest.mark.parametrize("prefix", ["/v1", "/engines/v1", "/engines/llama.cpp/v1"])
def test_a_generating_model_makes_embeddings(daemon: RunningDaemon, prefix: str) -> None:
    body = {"model": "one", "input": [[8, 8, 8], [1], [0, 1]]}
    answer = daemon.post(f"{prefix}/embeddings", body)
    vectors = [one["embedding"] for one in answer["data"]]
    assert vectors[0] == pytest.approx([1, *[0] * 7])
    assert vectors[2] == pytest.approx([0.5**0.5, 0.5**0.5, *[0] * 6])
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}


def test_many_inputs_at_once_as_base64(daemon: RunningDaemon, encoder: str) -> None:
    inputs = [[index % DIMENSIONS] * (1 + index % 70) for index in range(MANY)]
    body = {"model": encoder, "input": inputs, "encoding_format": "base64", "dimensions": DIMENSIONS}
    answer = daemon.post("/v1/embeddings", body)
    assert [one["index"] for one in answer["data"]] == list(range(MANY))
    for index, one in enumerate(answer["data"]):
        vector = struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(one["embedding"]))
        assert vector.index(1.0) == index % DIMENSIONS
    assert answer["usage"]["prompt_tokens"] == sum(map(len, inputs))


def test_an_encoder_does_not_generate(daemon: RunningDaemon, encoder: str) -> None:
    body = {"model": encoder, "messages": [{"role": "user", "content": "hi"}]}
    for stream in (False, True):
        status, error = refused(daemon, "/v1/chat/completions", {**body, "stream": stream})
        assert (status, error["param"]) == (400, "model")
        assert "does not generate text" in error["message"]


def test_N12_what_is_too_long_is_a_400_unless_it_may_be_cut(daemon: RunningDaemon, encoder: str) -> None:
    body = {"model": encoder, "input": ["a", "b" * 600]}
    status, error = refused(daemon, "/v1/embeddings", body)
    assert (status, error["code"], error["param"]) == (400, "invalid_parameter", "input[1]")
    assert "602" in error["message"]
    assert "512" in error["message"]
    answer = daemon.post("/v1/embeddings", {**body, "truncate": True})
    assert answer["usage"]["prompt_tokens"] == 3 + 512
    answer = daemon.post("/v1/embeddings", {**body, "truncate_prompt_tokens": 100})
    assert answer["usage"]["prompt_tokens"] == 3 + 100
    status, error = refused(daemon, "/v1/embeddings", {**body, "truncate_prompt_tokens": 513})
    assert (status, error["param"]) == (400, "truncate_prompt_tokens")
    status, error = refused(daemon, "/v1/embeddings", {**body, "dimensions": DIMENSIONS + 1})
    assert (status, error["param"]) == (400, "dimensions")


def test_L01_an_input_that_ends_its_worker_is_told_and_the_next_one_is_served(daemon: RunningDaemon) -> None:
    status, error = refused(daemon, "/v1/embeddings", {"model": "two", "input": "[[crash abort]]"})
    assert status >= 500
    assert error["code"] == "worker_crashed"
    assert daemon.post("/v1/embeddings", {"model": "two", "input": "fine"})["data"]
