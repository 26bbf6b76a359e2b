"""What is wrong with a job, in words: pydantic's errors told again with the key, what stands there, what is allowed.

Nothing here knows the job's keys; what is allowed comes from the annotations of job.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from parse_mpi.yamlfile import Document, KeyPath, Value

LONGEST_SHOWN = 60  # characters of a value in a message
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", JsonValue: "any value"}


def blame_all(document: Document, schema: type[BaseModel], errors: Sequence[ErrorDetails]) -> None:
    """Add one problem for each key that pydantic found wrong with the document's value."""
    for error in errors:
        located = _locate(schema, error["loc"], document.value)
        if located is not None:
            _blame(document, schema, error, *located)


def dotted(keys: KeyPath) -> str:
    """A key path as it is written after --set."""
    return ".".join(map(str, keys))


def show(value: object) -> str:
    """A value as it would stand in YAML, cut to a readable length."""
    if value is None:
        return "empty"
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")
    text = {"Infinity": ".inf", "-Infinity": "-.inf", "NaN": ".nan"}.get(text, text)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def key_hint(key: str, allowed: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
    """What may have been meant by a key that is not among `allowed`."""
    if close := get_close_matches(key, allowed, n=1):
        return f"did you mean `{close[0]}`?"
    if elsewhere:
        return f"`{key}` belongs to {either(elsewhere)}"
    return f"allowed here: {', '.join(allowed)}"


def either(words: Sequence[str]) -> str:
    """`a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _blame(document: Document, schema: type[BaseModel], error: ErrorDetails, keys: KeyPath, allowed: Any) -> None:
    kind, value = error["type"], error["input"]
    if kind in ("missing", "extra_forbidden") and error["loc"][-1] != keys[-1]:
        kind, value = "no branch of a union", _value_at(document.value, keys)
    if kind == "union_tag_invalid":
        value = value[keys[-1]]
    if kind in ("missing", "union_tag_not_found"):
        document.blame(keys, f"`{dotted(keys)}` is missing; it must be {_describe(allowed)}")
    elif kind == "extra_forbidden":
        homes = dict.fromkeys(_homes(schema, str(keys[-1])))
        homes.pop(dotted(keys[:-1]), None)  # another branch of this very section knows it
        hint = key_hint(str(keys[-1]), list(_fields(allowed)), list(homes))
        document.blame(keys, f"unknown key `{dotted(keys)}`", hint)
    elif kind == "value_error":
        reason = str(error["ctx"]["error"])
        document.blame(keys, f"`{dotted(keys)}`: {reason}" if keys else reason)
    elif kind == "too_short" and any(path[: len(keys)] == keys for path in document.wrong):
        pass  # pydantic counts an entry that is wrong in itself as absent
    else:
        what = f"`{dotted(keys)}` is {show(value)}; it must be {_describe(allowed)}"
        document.blame(keys, what, _value_hint(allowed, value))


# -- where an error lies in the schema -------------------------------------------------------------------------------


def _locate(schema: type[BaseModel], location: Sequence[str | int], value: Value) -> tuple[KeyPath, Any] | None:
    """The key path and annotation that an error is about; for an unknown key, its parent's annotation.

    pydantic puts the names of union branches between the keys and tries every branch. One branch was meant: errors of
    the others are dropped (None), and where none fits, the error is the whole union's.
    """
    annotation: Any = schema
    keys: KeyPath = ()
    for part in location:
        if tagged := _tagged(annotation):
            annotation = tagged[1][str(part)]
        elif len(_branches(annotation)) > 1:
            meant = _meant(_branches(annotation), _value_at(value, keys))
            if meant is None:
                break
            if part != meant.__name__:
                return None
            annotation = meant
        else:
            annotation = _child(annotation, part)
            keys = (*keys, part)
    if (tagged := _tagged(annotation)) and isinstance(_value_at(value, keys), dict):
        tag_key, by_tag = tagged
        return (*keys, tag_key), Literal[tuple(by_tag)]
    return keys, annotation


def _value_at(value: Value, keys: KeyPath) -> Value:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(str(key))
        elif isinstance(value, list) and isinstance(key, int):
            value = value[key]
    return value


def _bare(annotation: Any) -> tuple[Any, list[Any]]:
    """An annotation without its wrappings and None, and the limits that hung on it."""
    if isinstance(annotation, FieldInfo):
        bare, limits = _bare(annotation.annotation)
        return bare, limits + annotation.metadata
    if get_origin(annotation) is Annotated:
        bare, limits = _bare(get_args(annotation)[0])
        for item in annotation.__metadata__:
            limits += item.metadata if isinstance(item, FieldInfo) else [item]
        return bare, limits
    branches = _branches(annotation)
    return (annotation, []) if branches == [annotation] or len(branches) > 1 else _bare(branches[0])


def _branches(annotation: Any) -> list[Any]:
    """The members of a union other than None; of anything else, itself."""
    if isinstance(annotation, FieldInfo):
        annotation = annotation.annotation
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    return [branch for branch in get_args(annotation) if branch is not NoneType]


def _tagged(annotation: Any) -> tuple[str, dict[str, Any]] | None:
    """Of a union told apart by one key: that key, and the branch of each of its values."""
    if get_origin(annotation) is Annotated:  # an entry of a list
        annotation = FieldInfo.from_annotation(annotation)
    if not isinstance(annotation, FieldInfo) or not isinstance(annotation.discriminator, str):
        return None
    tag_key = annotation.discriminator
    branches = _branches(annotation)
    return tag_key, {tag: branch for branch in branches for tag in get_args(_fields(branch)[tag_key].annotation)}


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fields(annotation: Any) -> Mapping[str, FieldInfo]:
    bare, _ = _bare(annotation)
    return bare.model_fields if _is_model(bare) else {}


def _child(annotation: Any, key: str | int) -> Any:
    """The annotation of an entry; of an unknown key, the parent's own."""
    bare, _ = _bare(annotation)
    if get_origin(bare) is dict:
        return get_args(bare)[1]
    if isinstance(key, str):
        return _fields(bare).get(key, bare)
    entries = get_args(bare)
    return entries[0] if entries[-1] is Ellipsis else entries[key]


def _meant(branches: Sequence[Any], value: Value) -> type[BaseModel] | None:
    """The model of a union that shares most keys with a mapping, if one does."""
    if not isinstance(value, dict):
        return None
    shared = {branch: len(value.keys() & branch.model_fields.keys()) for branch in branches if _is_model(branch)}
    best = [branch for branch, count in shared.items() if count and count == max(shared.values())]
    return best[0] if len(best) == 1 else None


def key_paths(annotation: Any, above: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key path that the schema knows, entries of lists and of mappings of names left out."""
    for branch in _branches(annotation):
        for name, field in _fields(branch).items():
            yield (*above, name)
            yield from key_paths(field, (*above, name))


def _homes(annotation: Any, key: str, above: KeyPath = ()) -> Iterator[str]:
    """The sections that know a key; of a union told apart by one key, with the branches that do unless all do."""
    branches = _branches(annotation)
    if knowing := [branch for branch in branches if key in _fields(branch)]:
        home = dotted(above) or "the top level"
        if (tagged := _tagged(annotation)) and len(knowing) < len(branches):
            tag_key, by_tag = tagged
            home += f" with {tag_key}: {either([tag for tag, branch in by_tag.items() if branch in knowing])}"
        yield home
    for branch in branches:
        for name, field in _fields(branch).items():
            yield from _homes(field, key, (*above, name))


# -- what an annotation allows, in words -----------------------------------------------------------------------------


def _describe(annotation: Any) -> str:
    bare, limits = _bare(annotation)
    if tagged := _tagged(annotation):
        tag_key, by_tag = tagged
        return f"a mapping with {tag_key}: {either(list(by_tag))}"
    if len(_branches(bare)) > 1:
        return either([_brief(branch) for branch in _branches(bare)])
    if get_origin(bare) is Literal:
        return either([str(word) for word in get_args(bare)])
    if get_origin(bare) is tuple:
        return _describe_list(get_args(bare), limits)
    if get_origin(bare) is dict:
        return f"a mapping of names, each to {_describe(get_args(bare)[1])}"
    if fields := _fields(bare):
        return f"a mapping with the keys {', '.join(fields)}"
    words = list(_limits(limits))
    return _KINDS[bare] + (f" ({' and '.join(words)})" if words else "")


def _brief(annotation: Any) -> str:
    """A branch of a union: models are shown by their keys."""
    fields = _fields(annotation)
    return "{" + ", ".join(f"{name}: ..." for name in fields) + "}" if fields else _describe(annotation)


def _describe_list(entries: tuple[Any, ...], limits: Sequence[Any]) -> str:
    if entries[-1] is not Ellipsis:
        return f"a list of {len(entries)} entries, each {_describe(entries[0])}"
    fewest = max((limit.min_length for limit in limits if isinstance(limit, MinLen)), default=0)
    return f"a list{f' of at least {fewest}' if fewest else ''}, each entry {_describe(entries[0])}"


def _limits(limits: Sequence[Any]) -> Iterator[str]:
    for limit in limits:
        if isinstance(limit, Ge):
            yield f"at least {_number(limit.ge)}"
        elif isinstance(limit, Gt):
            yield f"above {_number(limit.gt)}"
        elif isinstance(limit, Le):
            yield f"at most {_number(limit.le)}"
        elif isinstance(limit, Lt):
            yield f"below {_number(limit.lt)}"
        elif pattern := getattr(limit, "pattern", None):
            yield f"matching {pattern}"


def _number(limit: Any) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


def _value_hint(allowed: Any, value: object) -> str:
    bare, _ = _bare(allowed)
    if isinstance(value, str):
        words = [str(word) for branch in _branches(bare) for word in get_args(branch) if get_origin(branch) is Literal]
        if close := get_close_matches(value, words, n=1):
            return f"did you mean {close[0]}?"
        if get_origin(bare) is tuple:
            return f"write [{value}]"
        if bare in (int, float) and value.replace(".", "", 1).isdigit():
            return "take the quotes away"
    if bare is str and isinstance(value, int | float):
        return "put it in quotes"
    if isinstance(allowed, FieldInfo) and allowed.description:
        return allowed.description
    return ""
