"""What can be configured for one model: ranges, JSON both ways, and whose word counts."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.engine import CacheType, FlashAttention
from runner.domain.sampling import INTEGERS, RANGES, SEED_MAX, TOP_K_MAX, SamplingParams
from runner.domain.settings import (
    CHAT_TEMPLATE_BYTES_MAX,
    NOTHING,
    SETTING_BY_NAME,
    SETTINGS,
    ModelSettings,
    SettingOrigin,
    SettingsLayer,
    read_settings,
    resolve,
    write_settings,
)
from runner.errors import InvalidParameter

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "context_size": st.integers(256, 2**24),
    "max_sequences": st.integers(1, 64),
    "threads": st.integers(1, 1024),
    "key_type": st.sampled_from(CacheType),
    "value_type": st.sampled_from(CacheType),
    "flash_attention": st.sampled_from(FlashAttention),
    "chat_template": st.text(min_size=1, max_size=50),
    "keep_alive_s": st.floats(0, 1e9) | st.just(math.inf),
    "pin": st.booleans(),
    "seed": st.integers(-SEED_MAX, SEED_MAX),
    **{
        name: st.integers(int(bounds.low), int(bounds.high))
        if name in INTEGERS
        else st.floats(bounds.low, bounds.high)
        for name, bounds in RANGES.items()
        if name != "seed"
    },
}
NAMES = [setting.name for setting in SETTINGS]
some_settings = st.fixed_dictionaries({}, optional=VALUES).map(lambda values: ModelSettings(**values))
origins = st.lists(st.sampled_from(SettingOrigin), unique=True)


def said(settings: ModelSettings) -> dict[str, Any]:
    values = {setting.name: getattr(settings, setting.field) for setting in SETTINGS}
    return {name: value for name, value in values.items() if value is not None}


def test_the_table_has_every_field_once() -> None:
    assert sorted(setting.field for setting in SETTINGS) == sorted(attrs.fields_dict(ModelSettings))
    assert len(set(NAMES)) == len(SETTINGS)


# JSON


@given(some_settings)
def test_what_is_written_is_read_again(settings: ModelSettings) -> None:
    document = write_settings(settings)
    assert read_settings(document) == settings
    assert all(type(value) in (str, int, float, bool) for value in document.values())
    assert list(document) == [name for name in NAMES if name in document]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("context_size", [256, 2**24], [255, 2**24 + 1, 4096.0, "4096", True, None]),
        ("max_sequences", [1, 64], [0, 65]),
        ("threads", [1, 1024], [0, 1025]),
        ("key_type", ["f16", "q8_0", "q4_0"], ["f32", "", 16, None, []]),
        ("value_type", ["f16", "q8_0", "q4_0"], ["Q8_0"]),
        ("flash_attention", ["auto", "on", "off"], [True, "yes"]),
        ("chat_template", ["x", "x" * CHAT_TEMPLATE_BYTES_MAX], ["", "x" * (CHAT_TEMPLATE_BYTES_MAX + 1), 1]),
        ("keep_alive", [0, "0", 1.5, "5m", -1, "-1"], ["soon", "", True, "1" * 33, None, []]),
        ("pin", [True, False], [1, "true", None]),
        ("temperature", [0, 0.0, 2, 2.0], [-0.01, 2.01, "1", True, None]),
        ("top_p", [0, 1], [-0.01, 1.01]),
        ("top_k", [0, TOP_K_MAX], [-1, TOP_K_MAX + 1, 1.0]),
        ("min_p", [0, 1], [-0.01, 1.01]),
        ("seed", [-SEED_MAX, SEED_MAX], [-SEED_MAX - 1, SEED_MAX + 1, 1.5]),
        ("typical_p", [0, 1], [-0.01, 1.01]),
        ("top_n_sigma", [-1, 10], [-1.01, 10.01]),
        ("dynatemp_range", [0, 2], [-0.01, 2.01]),
        ("dynatemp_exponent", [0.1, 10], [0.09, 10.01]),
        ("repeat_penalty", [0.1, 2], [0.09, 2.01]),
        ("repeat_last_n", [-1, 2**24], [-2, 2**24 + 1, 1.0]),
        ("frequency_penalty", [-2, 2], [-2.01, 2.01]),
        ("presence_penalty", [-2, 2], [-2.01, 2.01]),
        ("dry_multiplier", [0, 10], [-0.01, 10.01]),
        ("dry_base", [1, 10], [0.99, 10.01]),
        ("dry_allowed_length", [1, 1024], [0, 1025]),
        ("dry_penalty_last_n", [-1, 2**24], [-2, 2**24 + 1]),
        ("xtc_probability", [0, 1], [-0.01, 1.01]),
        ("xtc_threshold", [0, 1], [-0.01, 1.01]),
        ("mirostat", [0, 2], [-1, 3, 1.0, True]),
        ("mirostat_tau", [0, 20], [-0.01, 20.01]),
        ("mirostat_eta", [0, 1], [-0.01, 1.01]),
    ],
)
def test_N12_every_setting_has_its_range(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert said(read_settings({name: value})).keys() == {name}
    for value in bad:
        with pytest.raises(InvalidParameter) as caught:
            read_settings({name: value})
        assert [fault.path for fault in caught.value.faults] == [name]


def test_every_setting_has_a_case_above() -> None:
    [cases] = [mark.args[1] for mark in test_N12_every_setting_has_its_range.pytestmark]  # type: ignore[attr-defined]
    assert [case[0] for case in cases] == NAMES


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidParameter) as caught:
        read_settings({"temperature": 3, "context_size": 8192, "colour": "red", "top_k": "many"})
    assert {fault.path: fault.message for fault in caught.value.faults} == {
        "temperature": "must be between 0 and 2, and is 3",
        "colour": "is no setting of a model",
        "top_k": "must be an integer",
    }


def test_never_is_minus_one_in_json() -> None:
    assert read_settings({"keep_alive": -1}) == ModelSettings(keep_alive_s=math.inf)
    assert write_settings(ModelSettings(keep_alive_s=math.inf)) == {"keep_alive": -1}
    assert read_settings({"keep_alive": "1h30m"}).keep_alive_s == 5400


# changes


@given(some_settings, some_settings, st.sets(st.sampled_from(NAMES)))
def test_a_change_touches_what_it_names_and_nothing_else(
    before: ModelSettings, changes: ModelSettings, unset: set[str]
) -> None:
    after = said(before.changed(changes, unset))
    kept = {name: value for name, value in said(before).items() if name not in unset}
    assert after == {**kept, **said(changes)}


@given(some_settings)
def test_unsetting_everything_leaves_nothing(settings: ModelSettings) -> None:
    assert settings.changed(NOTHING, NAMES) == NOTHING
    assert settings.changed(NOTHING) == settings


@given(some_settings)
def test_load_options_and_the_rest_make_the_whole(settings: ModelSettings) -> None:
    at_load = {name for name in said(settings) if SETTING_BY_NAME[name].is_load_option}
    assert said(settings.load_options()).keys() == at_load
    assert settings.changed(NOTHING, at_load).changed(settings.load_options()) == settings


# what does not go together


@pytest.mark.parametrize(
    ("settings", "trained", "paths"),
    [
        (ModelSettings(context_size=4096), 4096, []),
        (ModelSettings(context_size=4097), 4096, ["context_size"]),
        (ModelSettings(context_size=2**24), None, []),
        (ModelSettings(value_type=CacheType.Q8_0), 4096, []),
        (ModelSettings(value_type=CacheType.F16, flash_attention=FlashAttention.OFF), None, []),
        (ModelSettings(key_type=CacheType.Q4_0, flash_attention=FlashAttention.OFF), None, []),
        (
            ModelSettings(value_type=CacheType.Q4_0, flash_attention=FlashAttention.OFF, context_size=512),
            256,
            ["context_size", "flash_attention"],
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused(
    settings: ModelSettings, trained: int | None, paths: list[str]
) -> None:
    assert [fault.path for fault in settings.faults(trained_context_size=trained)] == paths


# whose word counts


@given(st.dictionaries(st.sampled_from(SettingOrigin), some_settings), st.randoms())
def test_the_first_who_says_something_is_heard_in_whatever_order_they_are_asked(
    spoken: dict[SettingOrigin, ModelSettings], random: Any
) -> None:
    layers = [SettingsLayer(origin, settings) for origin, settings in spoken.items()]
    random.shuffle(layers)
    resolved = resolve(*layers)
    for setting in SETTINGS:
        heard = [
            (origin, value)
            for origin in SettingOrigin
            if (value := said(spoken.get(origin, NOTHING)).get(setting.name)) is not None
        ]
        value = getattr(resolved.values, setting.field)
        if heard:
            assert (resolved.origins[setting.name], value) == heard[0]
        else:
            assert setting.name not in resolved.origins
            assert value is None


@given(st.dictionaries(st.sampled_from(SettingOrigin), some_settings), st.sampled_from(SettingOrigin))
def test_a_layer_that_says_nothing_changes_nothing(
    spoken: dict[SettingOrigin, ModelSettings], silent: SettingOrigin
) -> None:
    layers = [SettingsLayer(origin, one) for origin, one in spoken.items() if origin is not silent]
    assert resolve(*layers, SettingsLayer(silent, NOTHING)) == resolve(*layers)


def test_the_order_of_origins_is_the_order_of_precedence() -> None:
    assert [origin.value for origin in SettingOrigin] == [
        "request",
        "configured",
        "packaged",
        "daemon",
        "built-in",
        "model",
    ]


@pytest.mark.parametrize(
    ("wished", "trained", "value", "origin"),
    [
        (4096, 8192, 4096, SettingOrigin.CONFIGURED),
        (8192, 8192, 8192, SettingOrigin.CONFIGURED),
        (8193, 8192, 8192, SettingOrigin.MODEL),
        (4096, None, 4096, SettingOrigin.CONFIGURED),
    ],
)
def test_no_context_is_longer_than_what_was_trained(
    wished: int, trained: int | None, value: int, origin: SettingOrigin
) -> None:
    layer = SettingsLayer(SettingOrigin.CONFIGURED, ModelSettings(context_size=wished, pin=True))
    resolved = resolve(layer).within(trained)
    assert (resolved.values.context_size, resolved.origins["context_size"]) == (value, origin)
    assert resolved.values.pin is True


def test_sampling_takes_the_usual_parameters_where_nothing_is_said() -> None:
    assert NOTHING.sampling() == SamplingParams()
    assert ModelSettings(temperature=0.0, seed=7, pin=True).sampling() == SamplingParams(
        temperature=0.0, seed=7
    )
