"""JSON documents with digests: strict reading into values, one way of writing.

Owns the converter of manifests, indexes and configs. Reading never coerces (`"3"` is no number, `1` no bool),
bounds the size before it parses, ignores members it does not know, and raises InvalidManifest only. Writing
is compact, in the order of the fields, so that equal values give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin

import cattrs
import orjson
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from runner.errors import InvalidManifest, InvalidReference
from runner.oci.digest import Digest

T = TypeVar("T")


def _strictly(accepted: type) -> Any:
    def structure(value: object, _target: object) -> object:
        if type(value) is not accepted:
            raise TypeError(f"expected {accepted.__name__}, not {type(value).__name__}")
        return value

    return structure


def _digest(value: object, _target: object) -> Digest:
    if not isinstance(value, str):
        raise TypeError("a digest is text")
    return Digest.parse(value)


def _is_tuple(target: Any) -> bool:
    origin: Any = get_origin(target)
    return origin is tuple


def _list(value: object, target: Any, converter: cattrs.Converter) -> tuple[Any, ...]:
    if not isinstance(value, list):  # else text would pass as a tuple of its characters
        raise TypeError(f"expected a list, not {type(value).__name__}")
    (item_type, _ellipsis) = get_args(target)
    return tuple(converter.structure(item, item_type) for item in value)


def make_converter(*renamed: tuple[type, dict[str, str]]) -> cattrs.Converter:
    """A strict converter for classes whose members are called otherwise in JSON: `(class, {field: member})`.

    Inner classes come first. Members that are None or an empty mapping are not written.
    """
    converter = cattrs.Converter(detailed_validation=False)
    for primitive in (str, int, float, bool):
        converter.register_structure_hook(primitive, _strictly(primitive))
    converter.register_structure_hook(Digest, _digest)
    converter.register_unstructure_hook(Digest, str)
    converter.register_structure_hook_func(_is_tuple, lambda value, target: _list(value, target, converter))
    for target, names in renamed:
        overrides: Any = {field: override(rename=member) for field, member in names.items()}
        structure: Callable[[Any, Any], Any] = make_dict_structure_fn(target, converter, **overrides)
        converter.register_structure_hook(target, _of_objects(structure))
        converter.register_unstructure_hook(
            target, _without_absent(make_dict_unstructure_fn(target, converter, **overrides))
        )
    return converter


def _of_objects(structure: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def structure_object(value: Any, target: Any) -> Any:
        if not isinstance(value, dict):  # else a list would pass where every member may be missing
            raise TypeError(f"expected an object, not {type(value).__name__}")
        return structure(value, target)

    return structure_object


def _without_absent(unstructure: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    def unstructure_present(value: Any) -> dict[str, Any]:
        members = unstructure(value)
        return {name: member for name, member in members.items() if member is not None and member != {}}

    return unstructure_present


def read_document(content: bytes, target: type[T], converter: cattrs.Converter, *, limit_bytes: int) -> T:
    """The value in these bytes; raises InvalidManifest, whatever is wrong with them."""
    if len(content) > limit_bytes:
        raise InvalidManifest(f"the document has {len(content)} bytes; the limit is {limit_bytes}")
    try:
        return converter.structure(orjson.loads(content), target)
    except orjson.JSONDecodeError as error:
        raise InvalidManifest(f"the document is not strict JSON: {error}") from None
    except InvalidReference as error:
        raise InvalidManifest(str(error)) from None
    except KeyError as error:
        raise InvalidManifest(f"the document lacks {error}") from None
    except (TypeError, ValueError, AttributeError, cattrs.BaseValidationError) as error:
        raise InvalidManifest(f"the document is not of its format: {error}"[:300]) from None


def write_document(value: object, converter: cattrs.Converter) -> bytes:
    """The bytes of this value, the same on every machine."""
    return orjson.dumps(converter.unstructure(value))
