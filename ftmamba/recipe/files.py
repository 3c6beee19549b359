"""Recipes and presets as files: the shipped ones by name, one's own by path."""

import json
from pathlib import Path
from typing import Any

import yaml

from ftmamba.recipe.sections import Recipe
from ftmamba.recipe.values import build
from modeling_ftmamba.columns import near

PACKAGE_FOLDER = Path(__file__).resolve().parent.parent


def configuration_folder() -> Path:
    """Return the folder of recipes, presets and launch files.

    A wheel carries it inside the package as `_configuration`; in a source tree, an editable
    install included, it is `configuration` beside the package.
    """
    installed = PACKAGE_FOLDER / "_configuration"
    return installed if installed.is_dir() else PACKAGE_FOLDER.parent / "configuration"


def shipped_names(kind: str) -> list[str]:
    """Return the names of the shipped `recipes`, `presets` or `accelerate` files."""
    return sorted(path.stem for path in (configuration_folder() / kind).glob("*.*"))


def read_recipe(path_or_name: str | Path) -> dict[str, Any]:
    """Read a recipe's YAML as a mapping, from a path or by a shipped name.

    Raises:
        FileNotFoundError: neither a file nor a shipped recipe.
        ValueError: the file is not YAML, or not a mapping.
    """
    path = _find(path_or_name, "recipes", ".yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {str(path)!r} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"recipe {str(path)!r} must be a mapping of sections, got {values!r}")
    return values


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """Build a recipe from plain values; an unknown key is refused with the near one suggested."""
    return build(Recipe, values)


def load_preset(path_or_name: str | Path) -> dict[str, Any]:
    """Read the configuration fields of a preset, from a path or by a shipped name."""
    path = _find(path_or_name, "presets", ".json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"preset {str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"preset {str(path)!r} must be a mapping of fields, got {values!r}")
    return values


def _find(path_or_name: str | Path, kind: str, suffix: str) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    shipped = configuration_folder() / kind / f"{path.name.removesuffix(suffix)}{suffix}"
    if path.parent == Path() and shipped.is_file():
        return shipped
    names = shipped_names(kind)
    raise FileNotFoundError(
        f"no file {str(path)!r} and no shipped one of that name in {kind}"
        f"{near(path.name.removesuffix(suffix), names)}; shipped: {', '.join(names) or 'none'}"
    )
