"""The command line of a recipe: a flag for every option, made from the options themselves."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, NoReturn, get_origin, get_type_hints

import yaml

from ftmamba.recipe.files import read_recipe, recipe_from_dict, shipped_names
from ftmamba.recipe.sections import Recipe
from ftmamba.recipe.values import default_of, main_option
from ftmamba.recipe.variants import choose_variant
from modeling_ftmamba.columns import near


@dataclass(frozen=True)
class Leaf:
    """One option of a recipe and the flags that set it."""

    path: tuple[str, ...]
    annotation: Any
    default: Any
    help_text: str
    flags: tuple[str, ...]

    @property
    def takes_mapping(self) -> bool:
        """Whether the option holds a mapping, so that `--option.key value` sets one key."""
        plain = {get_origin(part) for part in getattr(self.annotation, "__args__", ())}
        return dict in plain | {get_origin(self.annotation)}


class RecipeParser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors that suggest the near flag."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def load_recipe(argv: Sequence[str]) -> Recipe:
    """Read `--config` (a path or a shipped name), then let the other flags override it.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: an unknown key or flag, or a value of the wrong type or out of range.
    """
    leaves = list_leaves()
    parser = make_parser(leaves)
    options, unknown = parser.parse_known_args(list(argv))
    given = vars(options)
    path = given.pop("config", "")
    values: dict[str, Any] = read_recipe(path) if path else {}
    values = choose_variant(values, given.get("split.kind"))
    for leaf in leaves:
        if ".".join(leaf.path) in given:
            _put(values, leaf.path, _from_text(leaf, given[".".join(leaf.path)]))
    _put_mapping_keys(values, leaves, unknown)
    recipe = recipe_from_dict(values)
    recipe.data.check_complete()
    return recipe


def list_leaves() -> list[Leaf]:
    """List every option with its flags: the dotted name, and the bare one where it is unique."""
    found: list[tuple[tuple[str, ...], Any, Field[Any], list[str]]] = []
    sections = get_type_hints(Recipe)
    for f in fields(Recipe):
        if is_dataclass(sections[f.name]):
            hints = get_type_hints(sections[f.name])
            named_by = main_option(sections[f.name])
            for inner in fields(sections[f.name]):
                extra = [f"--{f.name}"] if inner == named_by else []
                found.append(((f.name, inner.name), hints[inner.name], inner, extra))
        else:
            found.append(((f.name,), sections[f.name], f, []))
    counts = Counter(path[-1] for path, *_ in found)
    top = {path[0] for path, *_ in found}
    leaves = []
    for path, annotation, f, extra in found:
        flags = [f"--{'.'.join(path)}", *extra]
        if len(path) == 2 and counts[path[-1]] == 1 and path[-1] not in top:
            flags.insert(0, f"--{path[-1]}")
        default = default_of(f)
        leaves.append(Leaf(path, annotation, default, f.metadata["help"], tuple(flags)))
    return leaves


def make_parser(leaves: Sequence[Leaf]) -> RecipeParser:
    """Build the parser; an option that no flag sets is absent from its result."""
    parser = RecipeParser(
        prog="train_accelerate.py",
        description="Train and evaluate a two-tower recommender from three tables.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        default="",
        help=f"a recipe: a YAML file, or one of: {', '.join(shipped_names('recipes'))}",
    )
    groups: dict[str, Any] = {}
    for leaf in leaves:
        title = leaf.path[0] if len(leaf.path) > 1 else "run"
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        switch: dict[str, Any] = {"nargs": "?", "const": "true"}
        group.add_argument(
            *leaf.flags,
            dest=".".join(leaf.path),
            default=argparse.SUPPRESS,
            metavar=leaf.path[-1].upper(),
            help=f"{leaf.help_text} (default: {leaf.default!r})".replace("%", "%%"),
            **(switch if leaf.annotation is bool else {}),
        )
    return parser


def _from_text(leaf: Leaf, text: str) -> Any:
    if not leaf.takes_mapping:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{leaf.flags[0]} must be a YAML mapping, got {text!r}: {error}") from None


def _put_mapping_keys(values: dict[str, Any], leaves: Sequence[Leaf], rest: list[str]) -> None:
    """Set keys of mappings from flags such as `--overrides.hidden_size 32`; refuse the others."""
    words = iter(_split_equals(rest))
    for word in words:
        owner = next(
            (
                (leaf, word.removeprefix(f"{flag}."))
                for leaf in leaves
                for flag in leaf.flags
                if leaf.takes_mapping and word.startswith(f"{flag}.")
            ),
            None,
        )
        if owner is None:
            known = [flag for leaf in leaves for flag in leaf.flags]
            raise ValueError(f"unknown flag {word!r}{near(word, known)}; --help lists all")
        leaf, key = owner
        text = next(words, None)
        if text is None:
            raise ValueError(f"flag {word!r} needs a value")
        _put(values, (*leaf.path, *key.split(".")), _number_or_same(yaml.safe_load(text)))


def _split_equals(words: Sequence[str]) -> list[str]:
    split: list[str] = []
    for word in words:
        split += word.split("=", 1) if word.startswith("--") else [word]
    return split


def _number_or_same(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a nested key, turning a section given by its main option alone into a mapping."""
    for depth, name in enumerate(path[:-1]):
        inner = values.get(name)
        if inner is None:
            inner = {}
        elif not isinstance(inner, Mapping):
            named_by = main_option(get_type_hints(Recipe)[name]) if depth == 0 else None
            inner = {named_by.name: inner} if named_by else {}
        values[name] = dict(inner)
        values = values[name]
    values[path[-1]] = value
