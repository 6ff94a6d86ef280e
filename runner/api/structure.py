"""From decoded JSON to typed values: strict types, ranges beside the field, all faults at once with paths.

A schema is an attrs class; what a type cannot say stands in `Annotated`:

    temperature: Annotated[float, RANGES["temperature"]] | None = None
    stop: Annotated[str, Text(1, 256)] | Annotated[tuple[...], Length(0, 16)] | None = None

Nothing is coerced: `"12"` is no number, `1` no boolean, `1.0` no integer (but an integer is a number). `null`
counts as absent where a field is optional. Unions are told apart by the JSON type of the value. Shared by the
dialects; built on cattrs; imports domain, oci and the error tree.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from runner.api.strict_json import BODY_PATH, FAULTS_MAX
from runner.domain.sampling import Range
from runner.errors import FieldFault, InvalidParameter, InvalidReference, UnsupportedParameter
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]


@attrs.frozen
class Text:
    """Bounds of a string, in bytes of UTF-8."""

    min_bytes: int = 0
    max_bytes: int = 2**31


@attrs.frozen
class Length:
    """Bounds of the number of members of a list or an object."""

    low: int = 0
    high: int = 2**31


@attrs.frozen
class By:
    """This function alone makes the value, from whatever JSON holds; it raises `Fault` or `Faults`."""

    read: Callable[[Any], Any]


class Fault(ValueError):
    """What is wrong with the value a hook was given."""


class Unsupported(Fault):
    """A known field that asks for something that is not implemented."""


class Faults(ValueError):
    """Faults of parts: path below the value, and the fault."""

    def __init__(self, faults: list[tuple[str, Fault]]) -> None:
        super().__init__(f"{len(faults)} faults")
        self.faults = faults


class Schema:
    """Structures documents; `forbid_unknown` makes a key that no field has a fault (our own API) instead of
    ignoring it (N13: foreign clients send what they like, and it goes nowhere)."""

    def __init__(self, *, forbid_unknown: bool) -> None:
        self._converter = cattrs.Converter(detailed_validation=True)
        self._forbid_unknown = forbid_unknown
        for kind, noun in (
            (str, "a string"),
            (bool, "true or false"),
            (int, "an integer"),
            (dict, "an object"),
        ):
            self._converter.register_structure_hook(kind, _exactly(kind, noun))
        self._converter.register_structure_hook(float, _number)
        self._converter.register_structure_hook(ModelName, _parsed_by(ModelName.parse))
        self._converter.register_structure_hook(Reference, _parsed_by(Reference.parse))
        self._converter.register_structure_hook(Digest, _parsed_by(Digest.parse))
        factories: tuple[tuple[Callable[[Any], bool], Callable[[Any], Hook]], ...] = (
            (attrs.has, self._class_hook),
            (_is_a(tuple), self._list_hook),
            (_is_a(dict), lambda _: _exactly(dict, "an object")),  # what it holds is its reader's matter
            (_is_a(Literal), _literal_hook),
            (_is_a(Union, types.UnionType), self._union_hook),
            (_is_a(Annotated), self._annotated_hook),
        )
        for matches, factory in factories:
            self._converter.register_structure_hook_factory(matches, factory)

    def hook(self, kind: Any) -> Hook:
        return self._converter.get_structure_hook(kind)

    def structure(self, document: object, kind: type[T]) -> T:
        """Raises InvalidParameter, or UnsupportedParameter when that is all that is wrong."""
        value: T
        value, faults = self.attempt(document, kind)
        raise_faults(faults)
        return value

    def attempt(self, document: object, kind: Any) -> tuple[Any, list[tuple[str, Fault]]]:
        """The value, or None and what is wrong with it."""
        try:
            return self.hook(kind)(document, kind), []
        except (Fault, Faults, ClassValidationError) as error:
            return None, list(_walk(error, ""))

    def _class_hook(self, kind: Any) -> Hook:
        structure = make_dict_structure_fn(
            kind, self._converter, _cattrs_forbid_extra_keys=self._forbid_unknown
        )

        def hook(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise Fault("must be an object")
            return structure(value, kind)

        return hook

    def _list_hook(self, kind: Any) -> Hook:
        member = get_args(kind)[0]
        convert = self.hook(member)

        def hook(value: Any, _: Any) -> Any:
            if type(value) is not list:
                raise Fault("must be a list")
            try:
                return tuple([convert(item, member) for item in value])
            except (Fault, Faults, ClassValidationError):
                faults = islice(_list_faults(value, convert, member), FAULTS_MAX)
                raise Faults(list(faults)) from None

        return hook

    def _union_hook(self, kind: Any) -> Hook:
        """1. null, where allowed, is None.  2. The member of the value's JSON type makes the value."""
        members = [member for member in get_args(kind) if member is not types.NoneType]
        is_optional = len(members) < len(get_args(kind))
        if len(members) == 1:
            convert = self.hook(members[0])
            return lambda value, _: None if value is None else convert(value, members[0])
        hooks = {json_type: self.hook(member) for member in members for json_type in _json_types(member)}
        nouns = " or ".join(dict.fromkeys(_NOUNS[json_type] for json_type in hooks))

        def hook(value: Any, _: Any) -> Any:
            if value is None and is_optional:
                return None
            convert = hooks.get(type(value))
            if convert is None:
                raise Fault(f"must be {nouns}")
            return convert(value, None)

        return hook

    def _annotated_hook(self, kind: Any) -> Hook:
        inner, *bounds = get_args(kind)
        if isinstance(bounds[0], By):
            return _made_by(bounds[0].read)
        convert = self.hook(inner)
        for bound in bounds:
            convert = _bounded(convert, bound, inner)
        return convert


def _is_a(*origins: Any) -> Callable[[Any], bool]:
    return lambda kind: any(get_origin(kind) is origin for origin in origins)


def raise_faults(faults: Iterable[tuple[str, Fault]]) -> None:
    """Raise what `faults` amount to; at most `FAULTS_MAX` of them are told."""
    told = list(faults)[:FAULTS_MAX]
    if not told:
        return
    fields = [FieldFault(path or BODY_PATH, str(fault)) for path, fault in told]
    if all(isinstance(fault, Unsupported) for _, fault in told):
        raise UnsupportedParameter(*fields)
    raise InvalidParameter(*fields)


def _parsed_by(parse: Callable[[str], T]) -> Callable[[Any, Any], T]:
    def hook(value: Any, _: Any) -> T:
        if type(value) is not str:
            raise Fault("must be a string")
        try:
            return parse(value)
        except InvalidReference as error:
            raise Fault(str(error)) from None

    return hook


def _exactly(kind: type, noun: str) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise Fault(f"must be {noun}")
        return value

    return hook


def _number(value: Any, _: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise Fault("must be a number")


def _literal_hook(kind: Any) -> Hook:
    allowed = get_args(kind)
    told = ", ".join(str(choice) for choice in allowed)

    def hook(value: Any, _: Any) -> Any:
        if type(value) is not str or value not in allowed:
            raise Fault(f"must be one of {told}")
        return value

    return hook


_NOUNS = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _json_types(kind: Any) -> tuple[type, ...]:
    """The Python types that JSON decodes to and that this member of a union takes."""
    if get_origin(kind) is Annotated:
        return _json_types(get_args(kind)[0])
    if get_origin(kind) is tuple:
        return (list,)
    if kind is float:
        return (float, int)
    return (kind,) if kind in _NOUNS else (dict,)


def _made_by(read: Callable[[Any], Any]) -> Hook:
    return lambda value, _: read(value)


def _bounded(convert: Hook, bound: object, inner: Any) -> Hook:
    match bound:
        case Range(low, high):
            told = f"must be between {_figure(low)} and {_figure(high)}"

            def check_range(value: Any, _: Any) -> Any:
                number = convert(value, inner)
                if not low <= number <= high:
                    raise Fault(f"{told}, and is {value}")
                return number

            return check_range
        case Text(min_bytes, max_bytes):

            def check_text(value: Any, _: Any) -> Any:
                if type(value) is str and not min_bytes <= len(value.encode()) <= max_bytes:
                    raise Fault(f"must have {min_bytes} to {max_bytes} bytes")
                return convert(value, inner)

            return check_text
        case Length(low_length, high_length):

            def check_length(value: Any, _: Any) -> Any:
                # before the members: nothing is made of a list that is refused for its length
                if type(value) in (list, dict) and not low_length <= len(value) <= high_length:
                    raise Fault(f"must have {low_length} to {high_length} entries, and has {len(value)}")
                return convert(value, inner)

            return check_length
    raise TypeError(f"{bound!r} is no bound")


def _figure(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _list_faults(value: list[Any], convert: Hook, member: Any) -> Iterator[tuple[str, Fault]]:
    for index, item in enumerate(value):
        try:
            convert(item, member)
        except (Fault, Faults, ClassValidationError) as error:
            yield from _walk(error, f"[{index}]")


def _walk(error: BaseException, path: str) -> Iterator[tuple[str, Fault]]:
    """The faults of what a hook raised, with paths as clients write them."""
    match error:
        case Fault():
            yield path, error
        case Faults():
            for below, fault in error.faults:
                joint = "" if not path or below.startswith("[") or not below else "."
                yield f"{path}{joint}{below}", fault
        case ClassValidationError():
            of_fields, of_class = error.group_exceptions()
            for inner, note in of_fields:
                yield from _walk(inner, f"{path}.{note.name}" if path else note.name)
            for inner in of_class:
                yield from _walk(inner, path)
        case KeyError():
            yield path, Fault("is required")
        case ForbiddenExtraKeysError():
            for name in sorted(error.extra_fields):
                shown = name[:64]
                yield f"{path}.{shown}" if path else shown, Fault("is not a field of this request")
        case _:
            raise error
