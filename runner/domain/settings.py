"""What can be configured for one model: every setting with its range, and whose word counts.

    request > configured > packaged > daemon > built-in

Owns the one table of settings (`SETTINGS`) that the control API, the files of the store, the command line and
the reference are read from. Values only; read on in `runner/store/settings.py`, which keeps them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

import attrs

from runner.domain.engine import CacheType, FlashAttention
from runner.domain.sampling import INTEGERS, RANGES, Range, SamplingParams
from runner.errors import FieldFault, InvalidParameter
from runner.units import parse_duration

Scalar = str | int | float | bool

CONTEXT_SIZES: Final = Range(256, 2**24)
SEQUENCES: Final = Range(1, 64)
THREADS: Final = Range(1, 1024)
CHAT_TEMPLATE_BYTES_MAX: Final = 256 * 1024  # the longest in use have some 20 KB

_DURATION_CHARACTERS_MAX = 32
_USUAL_SAMPLING = SamplingParams()
_NEVER: Final = -1

E = TypeVar("E", bound=enum.Enum)


class SettingOrigin(enum.Enum):
    """Who said what a setting is; the first one who did is heard."""

    REQUEST = "request"
    CONFIGURED = "configured"
    PACKAGED = "packaged"
    DAEMON = "daemon"
    BUILT_IN = "built-in"
    MODEL = "model"
    """The weights: where nobody says anything, and where more was wished than was trained."""


@attrs.frozen(kw_only=True)
class ModelSettings:
    """What somebody said of one model; None: nothing. Everything is within its range.

    `max_sequences` run at once. `keep_alive_s` infinite is never. A model with `pin`
    neither idles out nor makes room.
    """

    context_size: int | None = None
    max_sequences: int | None = None
    threads: int | None = None
    key_type: CacheType | None = None
    value_type: CacheType | None = None
    flash_attention: FlashAttention | None = None
    chat_template: str | None = None
    keep_alive_s: float | None = None
    pin: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None

    def changed(self, changes: ModelSettings, unset: Collection[str] = ()) -> ModelSettings:
        """These, without those whose names are in `unset`, and with all that `changes` say."""
        kept = {} if not unset else {setting.field: None for setting in SETTINGS if setting.name in unset}
        said = {name: value for name, value in _fields(changes).items() if value is not None}
        return attrs.evolve(self, **{**kept, **said})

    def load_options(self) -> ModelSettings:
        """Those alone that a model is loaded with."""
        return attrs.evolve(
            NOTHING, **{one.field: getattr(self, one.field) for one in SETTINGS if one.is_load_option}
        )

    def sampling(self, rest: SamplingParams = _USUAL_SAMPLING) -> SamplingParams:
        """`rest` where nothing is said."""
        said = {name: value for name in RANGES if (value := getattr(self, name)) is not None}
        return attrs.evolve(rest, **said)

    def faults(self, *, trained_context_size: int | None = None) -> tuple[FieldFault, ...]:
        """What does not go together, or not with the model."""
        found = []
        if self.context_size is not None and self.context_size > (trained_context_size or math.inf):
            found.append(
                FieldFault(
                    "context_size",
                    f"must be at most {trained_context_size}, which the model was trained for, "
                    f"and is {self.context_size}",
                )
            )
        is_quantised = self.value_type not in (None, CacheType.F16)
        if is_quantised and self.flash_attention is FlashAttention.OFF:
            found.append(
                FieldFault("flash_attention", f"must not be off: {_text_of(self.value_type)} values need it")
            )
        return tuple(found)


NOTHING: Final = ModelSettings()


# the table


@attrs.frozen(kw_only=True)
class Setting:
    """One setting: `read` makes its value of what JSON holds and raises ValueError with a phrase that says
    what is wrong; `write` makes JSON of it. `values` says what may be written, for people.

    A load option holds from the next load on, everything else at once. `field` names it in `ModelSettings`.
    """

    name: str
    field: str
    read: Callable[[object], Any]
    write: Callable[[Any], Scalar]
    values: str
    help: str
    is_load_option: bool = False


def read_keep_alive(value: object) -> float:
    """Seconds of `"5m"` or a number; negative, which becomes infinite, is never. Raises ValueError."""
    if type(value) in (int, float):
        seconds = float(value)  # type: ignore[arg-type]  # one of the two
    elif not isinstance(value, str):
        raise ValueError("must be a duration such as 5m, or a number of seconds")
    elif len(value) > _DURATION_CHARACTERS_MAX:
        raise ValueError(f"must have at most {_DURATION_CHARACTERS_MAX} characters")
    else:
        seconds = parse_duration(value)
    return math.inf if seconds < 0 else seconds


def write_keep_alive(seconds: float) -> float:
    """What `read_keep_alive` reads."""
    return seconds if math.isfinite(seconds) else _NEVER


def _read_integer(bounds: Range) -> Callable[[object], int]:
    def read(value: object) -> int:
        if type(value) is not int:
            raise ValueError("must be an integer")
        return _within(bounds, value)

    return read


def _read_number(bounds: Range) -> Callable[[object], float]:
    def read(value: object) -> float:
        if type(value) is not float and type(value) is not int:
            raise ValueError("must be a number")
        return float(_within(bounds, value))

    return read


N = TypeVar("N", int, float)


def _within(bounds: Range, value: N) -> N:
    if value not in bounds:
        raise ValueError(f"must be between {_figure(bounds.low)} and {_figure(bounds.high)}, and is {value}")
    return value


def _figure(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _read_choice(kind: type[E]) -> Callable[[object], E]:
    def read(value: object) -> E:
        for choice in kind:
            if choice.value == value:
                return choice
        raise ValueError(f"must be one of {', '.join(choice.value for choice in kind)}")

    return read


def _read_boolean(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def _read_template(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("must be a text without lone surrogates") from None
    if size_bytes > CHAT_TEMPLATE_BYTES_MAX:
        raise ValueError(f"must have at most {CHAT_TEMPLATE_BYTES_MAX} bytes, and has {size_bytes}")
    return value


def _text_of(choice: enum.Enum | None) -> str:
    return "" if choice is None else str(choice.value)


def _integer(name: str, bounds: Range, help_text: str, *, is_load_option: bool = False) -> Setting:
    return Setting(
        name=name,
        field=name,
        read=_read_integer(bounds),
        write=int,
        values=f"{_figure(bounds.low)} to {_figure(bounds.high)}",
        help=help_text,
        is_load_option=is_load_option,
    )


def _sampling(name: str, help_text: str) -> Setting:
    bounds = RANGES[name]
    if name in INTEGERS:
        return _integer(name, bounds, help_text)
    return Setting(
        name=name,
        field=name,
        read=_read_number(bounds),
        write=float,
        values=f"{_figure(bounds.low)} to {_figure(bounds.high)}",
        help=help_text,
    )


def _choice(name: str, kind: type[enum.Enum], help_text: str) -> Setting:
    return Setting(
        name=name,
        field=name,
        read=_read_choice(kind),
        write=_text_of,
        values=", ".join(choice.value for choice in kind),
        help=help_text,
        is_load_option=True,
    )


SETTINGS: Final[tuple[Setting, ...]] = (
    _integer("context_size", CONTEXT_SIZES, "tokens of one sequence", is_load_option=True),
    _integer("max_sequences", SEQUENCES, "sequences that run at once", is_load_option=True),
    _integer("threads", THREADS, "threads of the worker, at the most", is_load_option=True),
    _choice("key_type", CacheType, "type of the keys in the KV cache"),
    _choice("value_type", CacheType, "type of the values in the KV cache; all but f16 need flash attention"),
    _choice("flash_attention", FlashAttention, "attention without the whole matrix in memory"),
    Setting(
        name="chat_template",
        field="chat_template",
        read=_read_template,
        write=str,
        values="a Jinja template",
        help="how messages become a prompt, instead of the model's own template",
        is_load_option=True,
    ),
    Setting(
        name="keep_alive",
        field="keep_alive_s",
        read=read_keep_alive,
        write=write_keep_alive,
        values="a duration; -1 for ever",
        help="how long it stays loaded when idle",
    ),
    Setting(
        name="pin",
        field="pin",
        read=_read_boolean,
        write=bool,
        values="true or false",
        help="keep it loaded when idle, and never evict it to make room for others",
    ),
    _sampling("temperature", "randomness where a request says none; 0 takes the most probable token"),
    _sampling("top_p", "probability of the tokens to choose from, where a request says none; 1 for all"),
    _sampling("top_k", "number of tokens to choose from, where a request says none; 0 for all"),
    _sampling("min_p", "least probability against the best token, where a request says none; 0 for any"),
    _sampling("seed", "seed where a request says none, instead of a fresh one for each"),
    _sampling("typical_p", "probability of the most typical tokens to choose from; 1 for all"),
    _sampling("top_n_sigma", "standard deviations below the best logit to choose from; 0 or less for all"),
    _sampling("dynatemp_range", "how far the temperature moves with the entropy; 0 for not at all"),
    _sampling("dynatemp_exponent", "how entropy becomes temperature"),
    _sampling("repeat_penalty", "divides the logits of tokens that occurred; 1 for none"),
    _sampling("repeat_last_n", "tokens in which the penalties look for repetitions; -1 for all"),
    _sampling("frequency_penalty", "taken from a token's logit for each time it occurred"),
    _sampling("presence_penalty", "taken from a token's logit when it occurred"),
    _sampling("dry_multiplier", "strength of the DRY penalty for repeated runs of tokens; 0 for none"),
    _sampling("dry_base", "growth of the DRY penalty with the length of the run"),
    _sampling("dry_allowed_length", "longest run of tokens that DRY lets be repeated"),
    _sampling("dry_penalty_last_n", "tokens in which DRY looks for repetitions; -1 for all"),
    _sampling("xtc_probability", "how often XTC takes the most probable tokens away; 0 for never"),
    _sampling("xtc_threshold", "probability from which a token is one of those; above 0.5 for none"),
    _sampling("mirostat", "1 or 2 to steer the entropy instead of filtering; 0 for neither"),
    _sampling("mirostat_tau", "entropy that mirostat aims at"),
    _sampling("mirostat_eta", "how fast mirostat learns"),
)

SETTING_BY_NAME: Final[Mapping[str, Setting]] = MappingProxyType({one.name: one for one in SETTINGS})


def read_settings(document: Mapping[str, object]) -> ModelSettings:
    """The settings under these names; raises InvalidParameter with every fault, paths being the names."""
    values: dict[str, Any] = {}
    faults: list[FieldFault] = []
    for name, value in document.items():
        setting = SETTING_BY_NAME.get(name)
        if setting is None:
            faults.append(FieldFault(name[:64], "is no setting of a model"))
            continue
        try:
            values[setting.field] = setting.read(value)
        except ValueError as error:
            faults.append(FieldFault(name, str(error)))
    if faults:
        raise InvalidParameter(*faults)
    return ModelSettings(**values)


def write_settings(settings: ModelSettings) -> dict[str, Scalar]:
    """What `read_settings` reads: names and values of all that is said, in the order of the table."""
    return {
        one.name: one.write(value) for one in SETTINGS if (value := getattr(settings, one.field)) is not None
    }


# whose word counts


@attrs.frozen
class SettingsLayer:
    """What one of those who may say something said."""

    origin: SettingOrigin
    settings: ModelSettings


@attrs.frozen(kw_only=True)
class ResolvedSettings:
    """One value for every setting. `origins` has the names of those that somebody set."""

    values: ModelSettings
    origins: Mapping[str, SettingOrigin]

    def within(self, trained_context_size: int | None) -> ResolvedSettings:
        """The same for a model that was trained for no longer sequences than this."""
        wished = self.values.context_size
        if wished is None or trained_context_size is None or wished <= trained_context_size:
            return self
        return ResolvedSettings(
            values=attrs.evolve(self.values, context_size=trained_context_size),
            origins={**self.origins, "context_size": SettingOrigin.MODEL},
        )


USUAL: Final = SettingsLayer(
    SettingOrigin.BUILT_IN,
    ModelSettings(
        key_type=CacheType.F16,
        value_type=CacheType.F16,
        flash_attention=FlashAttention.AUTO,
        pin=False,
        **{name: getattr(_USUAL_SAMPLING, name) for name in RANGES},
    ),
)
"""What holds where nobody says anything, as far as it does not depend on the machine."""

_RANK: Final[Mapping[SettingOrigin, int]] = MappingProxyType(
    {origin: rank for rank, origin in enumerate(SettingOrigin)}
)


def resolve(*layers: SettingsLayer) -> ResolvedSettings:
    """For every setting the value of the first layer that has one, in the order of `SettingOrigin`.

    So what one layer leaves open is never taken from another, and the order of arguments does not matter.
    One layer for each origin.
    """
    values: dict[str, Any] = {}
    origins: dict[str, SettingOrigin] = {}
    for layer in sorted(layers, key=lambda one: _RANK[one.origin], reverse=True):
        for setting in SETTINGS:
            value = getattr(layer.settings, setting.field)
            if value is not None:
                values[setting.field] = value
                origins[setting.name] = layer.origin
    return ResolvedSettings(values=ModelSettings(**values), origins=origins)


def _fields(settings: ModelSettings) -> dict[str, Any]:
    return {one.field: getattr(settings, one.field) for one in SETTINGS}
