"""A study as its YAML file has it: which recipes there are, by their names."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ftmamba.recipe import Recipe, read_recipe, recipe_from_dict
from modeling_ftmamba.configuration_ftmamba import near

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Study:
    """Variants of one recipe.

    Attributes:
        name: of the data, and of the file.
        base: values of the shipped recipe.
        variants: what each variant that is tested replaces, by its name.
        compared: the variant or refit from which the others' differences are; empty if none is.
        refits: of what is trained on validation too, as the baselines are, which variant it is.
        baselines: which are fitted beside them, tuned on validation.
        tried: what each variant that is judged on validation alone replaces.
        tried_with: what all of these replace before.
    """

    name: str
    base: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    compared: str
    refits: Mapping[str, str]
    baselines: tuple[str, ...]
    tried: Mapping[str, Mapping[str, Any]]
    tried_with: Mapping[str, Any]

    def recipe(self, variant: str, seed: int, folder: str) -> Recipe:
        """Return the recipe of a variant that is tested.

        Args:
            variant: its name.
            seed: of weights, order and dropout.
            folder: where the data lies.

        Raises:
            ValueError: there is no such variant, or a value it cannot have.
        """
        return self._recipe(self.base, self.variants, variant, seed, folder)

    def tried_recipe(self, variant: str, seed: int, folder: str) -> Recipe:
        """Return the recipe of a variant that is judged on validation; see `recipe`."""
        return self._recipe(merged(self.base, self.tried_with), self.tried, variant, seed, folder)

    def _recipe(
        self,
        base: Mapping[str, Any],
        variants: Mapping[str, Mapping[str, Any]],
        variant: str,
        seed: int,
        folder: str,
    ) -> Recipe:
        if variant not in variants:
            raise ValueError(
                f"study {self.name!r} has no variant {variant!r}{near(variant, variants)}; "
                f"it has: {', '.join(variants)}"
            )
        own = {"seed": seed, "data": {"folder": folder}, "output_dir": "runs/sequences/latest"}
        own["evaluation"] = {"refit": False}  # what is trained on validation too is in `refits`
        return recipe_from_dict(merged(merged(base, variants[variant]), own))


def read_study(name: str) -> Study:
    """Read a study.

    Raises:
        ValueError: there is none of that name.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = sorted(study_names())
        raise ValueError(f"study must be one of {', '.join(known)}, got {name!r}")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    variants, tried = (
        {key: value or {} for key, value in values.get(part, {}).items()}
        for part in ("variants", "tried")
    )
    return Study(
        name,
        read_recipe(values["recipe"]),
        variants,
        values.get("compared", next(iter(variants), "")),
        values.get("refits", {}),
        tuple(values.get("baselines", ())),
        tried,
        values.get("tried_with", {}),
    )


def study_names() -> Iterator[str]:
    """Return the names of all studies."""
    return (path.stem for path in FOLDER.glob("*.yaml"))


def merged(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return values in which others are replaced, section by section.

    What a schema says of the columns of one table, and a model's overrides of another preset, are
    replaced whole.
    """
    result = deepcopy(dict(values))
    for key, other in others.items():
        whole = key == "columns" or (key == "model" and "preset" in other)
        if isinstance(other, Mapping) and isinstance(result.get(key), Mapping) and not whole:
            result[key] = merged(result[key], other)
        else:
            result[key] = deepcopy(other)
    return result
