"""What the engine derives sizes from, checked first (G03), and what a token costs in memory."""

from __future__ import annotations

import io

import pytest

from runner.errors import InvalidModelFile
from runner.gguf.architecture import (
    CONTEXT_MAX,
    EMBEDDING_MAX,
    EXPERTS_MAX,
    HEAD_LENGTH_MAX,
    HEADS_MAX,
    LAYERS_MAX,
)
from runner.gguf.format import ValueType
from runner.gguf.metadata import GgufMetadata, read_metadata
from tests.support.gguf_writer import (
    Raw,
    Tensor,
    boolean,
    f32,
    gguf_bytes,
    i32,
    model_keys,
    numbers,
    scalar,
    strings,
    text,
    u32,
    u64,
)


def describe(tensors: list[Tensor] | None = None, **changes: Raw | None) -> GgufMetadata:
    """Metadata of the sound model with some of its `llama.*` keys changed; `__` stands for a dot."""
    overrides = {f"llama.{name.replace('__', '.')}": value for name, value in changes.items()}
    return read_metadata(io.BytesIO(gguf_bytes(model_keys(overrides), tensors or [Tensor()])))


def refusal(tensors: list[Tensor] | None = None, **changes: Raw | None) -> str:
    with pytest.raises(InvalidModelFile) as caught:
        describe(tensors, **changes)
    return str(caught.value)


def accepts(**changes: Raw | None) -> bool:
    try:
        describe(**changes)
    except InvalidModelFile:
        return False
    return True


def u32s(*values: int) -> Raw:
    return numbers(ValueType.UINT32, values)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("context_length", 1, CONTEXT_MAX),
        ("block_count", 1, LAYERS_MAX),
        ("embedding_length", 1, EMBEDDING_MAX),
        ("attention__key_length", 1, HEAD_LENGTH_MAX),
        ("attention__value_length", 1, HEAD_LENGTH_MAX),
        ("attention__head_count", 0, HEADS_MAX),
        ("expert_count", 0, EXPERTS_MAX),
        ("nextn_predict_layers", 0, 2),
        ("attention__shared_kv_layers", 0, 2),
        ("vocab_size", 0, 512 * 1024),
    ],
)
def test_G03_sizes_at_below_and_above_their_limits(name: str, low: int, high: int) -> None:
    fitting: dict[str, Raw] = {"expert_used_count": u32(1)} if name == "expert_count" else {}
    fitting |= {"attention__head_count_kv": u32(0)} if name == "attention__head_count" else {}
    for value, is_possible in (
        (low - 1, False),
        (low, True),
        (high - 1, True),
        (high, True),
        (high + 1, False),
    ):
        extra = fitting if value else {}
        assert accepts(**{name: scalar(ValueType.INT64, value)}, **extra) is is_possible, value
    assert not accepts(**{name: u64(2**64 - 1)}, **fitting)


@pytest.mark.parametrize("name", ["context_length", "block_count", "embedding_length"])
def test_G03_what_the_engine_needs_is_there(name: str) -> None:
    assert f"llama.{name} is missing" in refusal(**{name: None})


@pytest.mark.parametrize("value", [text("2"), f32(2.0), boolean(1), strings(["2"]), u32s(2, 2)])
@pytest.mark.parametrize("name", ["context_length", "block_count", "attention__sliding_window"])
def test_G03_sizes_are_whole_numbers(name: str, value: Raw) -> None:
    assert "no whole number" in refusal(**{name: value})


def test_whole_numbers_of_any_width_are_taken() -> None:
    for value in (u64(2), i32(2), scalar(ValueType.UINT8, 2)):
        assert describe(block_count=value).block_count == 2


@pytest.mark.parametrize(("count", "is_possible"), [(0, False), (1, False), (2, True), (3, False)])
def test_G03_lists_per_layer_have_a_number_for_each_layer(count: int, is_possible: bool) -> None:
    for name in ("attention__head_count", "attention__head_count_kv", "expert_used_count"):
        values = u32s(*[4] * count)
        extra = {"expert_count": u32(8)} if name == "expert_used_count" else {}
        assert accepts(**{name: values}, **extra) is is_possible


def test_G03_a_list_of_something_else_is_refused() -> None:
    assert "one for each layer" in refusal(attention__head_count=strings(["4", "4"]))
    assert "no whole number" in refusal(attention__head_count=numbers(ValueType.FLOAT32, [4.0, 4.0]))
    assert "is 4294967295" in refusal(attention__head_count=u32s(4, 2**32 - 1))
    assert "is -1" in refusal(attention__head_count_kv=numbers(ValueType.INT32, [2, -1]))


@pytest.mark.parametrize(
    ("heads", "pairs", "is_possible"),
    [
        (4, 4, True),
        (4, 2, True),
        (4, 1, True),
        (4, 3, False),
        (4, 8, False),
        (4, 0, True),
        (0, 4, True),
        (0, 0, True),
    ],
)
def test_G03_key_value_heads_divide_the_heads(heads: int, pairs: int, is_possible: bool) -> None:
    assert accepts(attention__head_count=u32(heads), attention__head_count_kv=u32(pairs)) is is_possible
    lists = {"attention__head_count": u32s(4, heads), "attention__head_count_kv": u32s(4, pairs)}
    assert accepts(**lists) is is_possible


@pytest.mark.parametrize(
    ("experts", "used", "groups", "groups_used", "is_possible"),
    [
        (0, 0, 0, 0, True),
        (0, 1, 0, 0, False),
        (0, 0, 1, 0, False),
        (8, 0, 0, 0, False),
        (8, 2, 0, 0, True),
        (8, 8, 0, 0, True),
        (8, 9, 0, 0, False),
        (8, 2, 1, 0, True),
        (8, 2, 4, 2, True),
        (8, 2, 4, 4, False),
        (8, 2, 4, 0, False),
        (8, 2, 3, 1, False),
        (8, 2, 8, 1, False),
    ],
)
def test_G03_experts_and_their_groups_fit(
    experts: int, used: int, groups: int, groups_used: int, is_possible: bool
) -> None:
    assert is_possible is accepts(
        expert_count=u32(experts),
        expert_used_count=u32(used),
        expert_group_count=u32(groups),
        expert_group_used_count=u32(groups_used),
    )


def test_one_expert_is_dense_for_those_who_say_it_so() -> None:
    keys = {
        "expert_count": u32(1),
        "context_length": u32(9),
        "embedding_length": u32(8),
        "block_count": u32(1),
    }
    for architecture, is_possible in (("hunyuan-dense", True), ("llama", False)):
        pairs = {"general.architecture": text(architecture)}
        pairs |= {f"{architecture}.{name}": value for name, value in keys.items()}
        data = io.BytesIO(gguf_bytes(pairs))
        if is_possible:
            assert read_metadata(data).architecture == architecture
        else:
            with pytest.raises(InvalidModelFile, match="uses 0 experts"):
                read_metadata(data)


@pytest.mark.parametrize(
    ("kind", "is_possible"), [("none", True), ("yarn", True), ("", False), ("ntk", False)]
)
def test_G03_rope_scaling_is_one_the_engine_knows(kind: str, is_possible: bool) -> None:
    assert accepts(rope__scaling__type=text(kind)) is is_possible


@pytest.mark.parametrize(
    ("epsilon", "is_possible"),
    [(0.0, True), (1e-5, True), (-1e-9, False), (float("nan"), False), (float("inf"), False)],
)
def test_G03_norms_have_a_positive_epsilon(epsilon: float, is_possible: bool) -> None:
    for name in ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon"):
        assert accepts(**{f"attention__{name}": f32(epsilon)}) is is_possible
        assert not accepts(**{f"attention__{name}": u32(0)})


@pytest.mark.parametrize(
    ("name", "shape", "type_number", "is_possible"),
    [
        ("blk.0.attn_q.weight", (32, 4), 0, True),
        ("blk.0.attn_q.weight", (32, 4), 8, True),
        ("blk.0.attn_q.weight", (32, 4), 24, False),
        ("blk.0.attn_q.weight", (32, 4), 26, False),
        ("blk.0.attn_q.weight", (32, 4), 28, False),
        ("blk.0.attn_norm.weight", (32,), 0, True),
        ("blk.0.attn_norm.weight", (32,), 1, False),
        ("blk.0.attn_q_norm.weight", (32, 4), 1, False),
        ("blk.0.attn_q.bias", (32,), 1, False),
        ("blk.0.ffn_gate_tid2eid.weight", (6, 99), 26, True),
        ("d2t", (99,), 27, True),
    ],
)
def test_G03_weights_are_of_types_the_engine_computes_with(
    name: str, shape: tuple[int, ...], type_number: int, is_possible: bool
) -> None:
    tensors = [Tensor(name, shape, type_number)]
    if is_possible:
        assert describe(tensors).n_parameters > 0
    else:
        assert name in refusal(tensors)


# What a token costs


def test_keys_and_values_of_all_layers_count() -> None:
    metadata = describe()
    assert (metadata.key_length, metadata.value_length) == (16, 16)
    assert metadata.kv_bytes_per_cell() == 2 * 2 * (16 + 16) * 2  # layers, heads, lengths, f16


def test_lengths_may_be_declared() -> None:
    metadata = describe(attention__key_length=u32(96), attention__value_length=u32(64))
    assert metadata.kv_bytes_per_cell() == 2 * 2 * (96 + 64) * 2


def test_without_key_value_heads_there_are_as_many_as_heads() -> None:
    assert describe(attention__head_count_kv=None).head_counts_kv == (4, 4)


def test_layers_may_differ_in_heads() -> None:
    metadata = describe(attention__head_count=u32s(4, 8), attention__head_count_kv=u32s(2, 0))
    assert (metadata.head_counts, metadata.head_counts_kv) == ((4, 8), (2, 0))
    assert metadata.kv_bytes_per_cell() == 2 * (16 + 16) * 2


def test_a_first_layer_without_heads_does_not_tell_the_length_of_the_others() -> None:
    metadata = describe(attention__head_count=u32s(0, 4), attention__head_count_kv=u32s(0, 2))
    assert (metadata.key_length, metadata.kv_bytes_per_cell()) == (16, 2 * 32 * 2)


def test_layers_with_a_window_count_in_full_and_with_their_own_lengths() -> None:
    window = {
        "attention__sliding_window": u32(512),
        "attention__key_length": u32(64),
        "attention__value_length": u32(64),
        "attention__key_length_swa": u32(16),
        "attention__value_length_swa": u32(16),
    }
    unknown = describe(**window)
    assert unknown.sliding_window == 512
    assert unknown.kv_bytes_per_cell() == 2 * 2 * 128 * 2
    told = describe(**window, attention__sliding_window_pattern=numbers(ValueType.BOOL, [1, 0]))
    assert told.kv_bytes_per_cell() == 2 * (32 + 128) * 2


def test_layers_that_share_keys_of_others_keep_none() -> None:
    assert describe(attention__shared_kv_layers=u32(1)).kv_bytes_per_cell() == 2 * 32 * 2


def test_recurrent_layers_between_full_ones_keep_none() -> None:
    metadata = describe(block_count=u32(8), full_attention_interval=u32(4))
    assert metadata.kv_bytes_per_cell() == 2 * 2 * 32 * 2
    further = describe(block_count=u32(9), full_attention_interval=u32(4), nextn_predict_layers=u32(1))
    assert further.kv_bytes_per_cell() == 3 * 2 * 32 * 2


def test_latent_attention_keeps_one_vector_per_token() -> None:
    metadata = describe(
        attention__head_count=u32(128),
        attention__head_count_kv=u32(1),
        attention__key_length=u32(576),
        attention__value_length=u32(512),
        attention__key_length_mla=u32(192),
        attention__value_length_mla=u32(128),
    )
    assert metadata.kv_bytes_per_cell() == 2 * 576 * 2


def test_a_purely_recurrent_model_keeps_no_cells() -> None:
    keys = {
        "general.architecture": text("mamba"),
        "mamba.context_length": u32(2**20),
        "mamba.embedding_length": u32(768),
        "mamba.block_count": u32(24),
        "mamba.attention.head_count": u32(0),
        "mamba.ssm.state_size": u32(16),
    }
    metadata = read_metadata(io.BytesIO(gguf_bytes(keys)))
    assert metadata.kv_bytes_per_cell() == 0
    assert (metadata.head_counts, metadata.key_length) == ((0,) * 24, 0)
