"""Options of a recipe: declared once, converted and checked against their annotations."""

import math
import types
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from modeling_ftmamba.columns import near

Section = TypeVar("Section")

NAME_OF_TYPE = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    tuple: "a list",
}


def option(
    default: Any,
    help_text: str,
    *,
    main: bool = False,
    choices: Sequence[str] = (),
    least: float = -math.inf,
    most: float = math.inf,
) -> Any:
    """Declare an option.

    Args:
        default: its value when neither the file nor a flag sets it.
        help_text: one line for `--help`.
        main: the option a section is named by, so that `--split random` sets `split.kind`.
        choices: the values it may have; empty allows any.
        least: the least value of a number.
        most: the greatest value of a number.
    """
    about = {"help": help_text, "main": main, "choices": choices, "least": least, "most": most}
    return field(default_factory=lambda: deepcopy(default), metadata=about)


def check_options(section: Any) -> None:
    """Raise ValueError when an option is outside its choices or its range."""
    for f in fields(section):
        value = getattr(section, f.name)
        choices = f.metadata["choices"]
        if choices and value not in choices:
            raise ValueError(
                f"{f.name} must be one of {', '.join(choices)}, got {value!r}{near(value, choices)}"
            )
        least, most = f.metadata["least"], f.metadata["most"]
        for number in value if isinstance(value, tuple) else (value,):
            is_number = isinstance(number, int | float)
            if is_number and not least <= number <= most:
                limit = f">= {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                raise ValueError(f"{f.name} must be {limit}, got {number!r}")


def build(section: type[Section], values: Mapping[str, Any], where: str = "") -> Section:
    """Build a section from plain values, converting each to its annotation.

    Args:
        section: a dataclass whose fields were made by `option`.
        values: as read from YAML or from flags.
        where: dotted name of the section, for messages.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or one out of its range.
    """
    known = {f.name: f for f in fields(section)}  # type: ignore[arg-type]
    hints = get_type_hints(section)
    converted = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            inside = f"section {where!r} of the recipe" if where else "the recipe"
            raise ValueError(
                f"{inside} has no key {key!r}{near(key, known)}; it has: {', '.join(known)}"
            )
        converted[str(key)] = convert(value, hints[str(key)], name)
    try:
        return section(**converted)
    except ValueError as error:
        raise ValueError(f"{where}.{error}" if where else str(error)) from None


def convert(value: Any, annotation: Any, name: str) -> Any:
    """Convert a YAML value or a flag's text to the annotation of the option `name`.

    Numbers may come as text, since YAML 1.1 reads `1e-4` as text.

    Raises:
        ValueError: the value does not fit.
    """
    if is_dataclass(annotation):
        return _convert_section(value, annotation, name)
    if get_origin(annotation) in (Union, types.UnionType):
        return _convert_union(value, get_args(annotation), name)
    if get_origin(annotation) is tuple:
        return _convert_list(value, get_args(annotation)[0], name)
    return _convert_plain(value, get_origin(annotation) or annotation, name)


def default_of(declared: Field[Any]) -> Any:
    """Return the default of a field made by `option`."""
    factory: Any = declared.default_factory
    return factory()


def main_option(section: Any) -> Field[Any] | None:
    """Return the option that the section is named by, if it has one."""
    return next((f for f in fields(section) if f.metadata["main"]), None)


def to_plain(value: Any) -> Any:
    """Return dataclasses as mappings and tuples as lists, all the way down."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(element) for element in value]
    if isinstance(value, Mapping):
        return {key: to_plain(element) for key, element in value.items()}
    return value


def _convert_section(value: Any, annotation: Any, name: str) -> Any:
    named_by = main_option(annotation)
    if isinstance(value, str) and named_by is not None:
        value = {named_by.name: value}
    if not isinstance(value, Mapping):
        raise _wrong_type(value, dict, name)
    return build(annotation, value, name)


def _convert_union(value: Any, members: tuple[Any, ...], name: str) -> Any:
    if value is None or value in ("null", "none"):
        if type(None) in members:
            return None
        raise _wrong_type(value, next(m for m in members if m is not type(None)), name)
    problems = []
    for member in members:
        if member is not type(None):
            try:
                return convert(value, member, name)
            except ValueError as error:
                problems.append(error)
    raise problems[0]


def _convert_list(value: Any, element: Any, name: str) -> tuple[Any, ...]:
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise _wrong_type(value, tuple, name)
    return tuple(convert(part, element, name) for part in parts if part != "")


def _convert_plain(value: Any, plain: type, name: str) -> Any:
    if plain is dict and isinstance(value, Mapping):
        return dict(value)
    if plain is bool:
        return _convert_bool(value, name)
    if plain in (int, float):
        return _convert_number(value, plain, name)
    if plain is str and isinstance(value, str):
        return value
    raise _wrong_type(value, plain, name)


def _convert_bool(value: Any, name: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise _wrong_type(value, bool, name)


def _convert_number(value: Any, kind: type, name: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong_type(value, kind, name)
    try:
        number = float(value)
    except ValueError:
        raise _wrong_type(value, kind, name) from None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise _wrong_type(value, kind, name)
    if kind is float:
        return number
    return value if isinstance(value, int) else int(number)


def _wrong_type(value: Any, kind: Any, name: str) -> ValueError:
    return ValueError(f"{name} must be {NAME_OF_TYPE.get(kind, kind)}, got {value!r}")
