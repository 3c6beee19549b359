"""Variants of a recipe: what else changes with the split.

A recipe may hold `for_split`, a mapping from a split's name to a partial recipe:

    split: global-time
    for_split:
      random:
        training: {loss: full_mse}

The part of the split in force is laid over the recipe before any flag is.
"""

from collections.abc import Mapping
from typing import Any, get_type_hints

from ftmamba.recipe.sections import Recipe, SplitRecipe
from ftmamba.recipe.values import main_option
from modeling_ftmamba.columns import near

KEY = "for_split"


def choose_variant(values: Mapping[str, Any], split_of_flags: str | None) -> dict[str, Any]:
    """Return the recipe with the part for its split laid over it and the other parts gone.

    Args:
        values: a recipe as read from YAML.
        split_of_flags: the split that a flag names, which wins over the file's.

    Raises:
        ValueError: `for_split` is no mapping of known splits to mappings.
    """
    rest = {key: value for key, value in values.items() if key != KEY}
    variants = values.get(KEY) or {}
    if not isinstance(variants, Mapping):
        raise ValueError(f"{KEY} must be a mapping of splits to partial recipes, got {variants!r}")
    known = SplitRecipe.kinds()
    for name, partial in variants.items():
        if name not in known:
            raise ValueError(
                f"{KEY} names an unknown split {name!r}{near(name, known)}; "
                f"splits: {', '.join(known)}"
            )
        if not isinstance(partial, Mapping):
            raise ValueError(f"{KEY}.{name} must be a partial recipe, got {partial!r}")
    kind = split_of_flags or _section(rest, "split").get("kind", SplitRecipe().kind)
    return _laid_over(rest, variants.get(kind, {}))


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section as a mapping, also where it is given by its main option alone."""
    section = values.get(name)
    if section is None:
        return {}
    if isinstance(section, Mapping):
        return dict(section)
    named_by = main_option(get_type_hints(Recipe)[name])
    return {named_by.name: section} if named_by else {}


def _laid_over(values: Mapping[str, Any], partial: Mapping[str, Any]) -> dict[str, Any]:
    """Replace sections option by option; the schema and other values whole."""
    merged = dict(values)
    for name, part in partial.items():
        is_section = hasattr(get_type_hints(Recipe).get(name), "__dataclass_fields__")
        below = _section(merged, name) if is_section and name in merged else None
        merged[name] = part if below is None else {**below, **_section(partial, name)}
    return merged
