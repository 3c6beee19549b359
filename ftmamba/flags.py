"""The command line of a recipe: a flag for every option, made from the options themselves."""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml

from ftmamba.recipe import (
    Recipe,
    as_mapping,
    choose_variant,
    lay_over,
    read_recipe,
    recipe_from_dict,
    shipped_names,
)
from modeling_ftmamba.configuration_ftmamba import near


@dataclass(frozen=True)
class Option:
    """One option of a recipe.

    Attributes:
        path: its sections and its name.
        annotation: the type of its value.
        default: its value, or of an option that a choice reads, the value of each choice.
        help_text: one line for `--help`.
        choices: the values it may have; empty allows any.
        flags: any end of its dotted name that no other option ends with; where a section is named
            by it, those of the section too. The first is the one that `--help` shows.
    """

    path: tuple[str, ...]
    annotation: Any
    default: Any
    help_text: str
    choices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def takes_mapping(self) -> bool:
        """Whether the option holds a mapping, so that `--option.key value` sets one key."""
        return dict in self._kinds

    @property
    def takes_list(self) -> bool:
        """Whether the option holds a list: `--option a b`, `--option a,b`, `--option '[a, b]'`."""
        return tuple in self._kinds

    @property
    def values_in_help(self) -> str:
        """What stands for the value in `--help`."""
        if self.choices:
            return f"{{{','.join(choice or repr(choice) for choice in self.choices)}}}"
        names = {dict: "YAML", bool: "true|false", int: "N", float: "X", str: "TEXT"}
        name = next(name for kind, name in names.items() if kind in self._kinds)
        return f"{name} ..." if self.takes_list else name

    @property
    def help_line(self) -> str:
        """What the option is, who reads it, and its default."""
        read_by = self.default if isinstance(self.default, Mapping) and self.default else {}
        own = {choice: value for choice, value in read_by.items() if value is not None}
        if read_by:
            default = ", ".join(f"{value} with {choice}" for choice, value in own.items())
            values = set(map(repr, own.values()))
            default = str(next(iter(own.values()))) if len(values) == 1 else default
            line = f"{self.help_text}; read by {', '.join(read_by)}"
        else:
            line = self.help_text
            default = ", ".join(map(str, self.default)) if self.takes_list else str(self.default)
        return f"{line} (default: {default})" if default not in ("", "None", "{}") else line

    @property
    def _kinds(self) -> set[Any]:
        kinds = {self.annotation}
        for _ in range(2):  # a union, and what its members hold
            kinds |= {part for kind in kinds for part in (get_origin(kind), *get_args(kind))}
        return kinds


class RecipeParser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


PROGRAM = "train_accelerate.py"


def load_recipe(argv: Sequence[str]) -> Recipe:
    """Read a complete recipe from `--config` and the other flags; see `read_flags`.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: an unknown key or flag, or a value of the wrong type or out of range.
    """
    recipe = recipe_from_dict(read_flags(argv)[0])
    recipe.data.check_complete()
    return recipe


def read_flags(argv: Sequence[str], *, program: str = PROGRAM) -> tuple[dict[str, Any], bool]:
    """Read `--config` (a path or a shipped name), then let the other flags override it.

    Returns:
        The recipe as plain values, and whether a config was given: without one it is partial.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: an unknown key or flag, or a value that is not YAML.
    """
    options = list_options()
    parsed, rest = make_parser(options, program).parse_known_args(list(argv))
    given = vars(parsed)
    path = given.pop("config", "")
    for one in options:
        if one.takes_list and (words := given.get(".".join(one.path))):
            given[".".join(one.path)] = _list_of(words, one.flags[0])
    values = choose_variant(read_recipe(path) if path else {}, given.get("split.kind"))
    for one in _main_options_first(options):
        name = ".".join(one.path)
        if name in given:
            text = _yaml(given[name], one.flags[0]) if one.takes_mapping else given[name]
            values = lay_over(Recipe, values, _nested(one.path, text))
    for key_path, value in _keys_of_mappings(options, rest):
        _put(values, key_path, value)
    return values, bool(path)


def read_keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options given by the names of their flags, with `_` or `__` for a dot, as a recipe.

    Raises:
        ValueError: there is no such option, and the near one is suggested.
    """
    options, values = list_options(), dict[str, Any]()
    names = {flag[2:].replace(".", "_"): one for one in options for flag in one.flags}
    for name in given:
        if name not in names:
            raise ValueError(f"there is no option {name!r}{near(name, names)}")
    for one in _main_options_first(options):
        for name in given:
            if names[name] is one:
                values = lay_over(Recipe, values, _nested(one.path, given[name]))
    return values


def _main_options_first(options: Sequence[Option]) -> list[Option]:
    """Put a section's main option first: another loss replaces the options of the former."""
    return sorted(options, key=lambda one: one.path != ("training", "loss", "name"))


def list_options() -> list[Option]:
    """List every option with its flags."""
    found = list(_walk(Recipe, ()))
    ends = Counter(end for one, _ in found for end in {*_ends(one.path)})
    sections = {path[:n] for one, _ in found for path in [one.path] for n in range(1, len(path))}
    ends.update(end for path in sections for end in {*_ends(path)})
    top = {f.name for f in fields(Recipe)}
    options = []
    for one, is_main in found:
        paths = [one.path, one.path[:-1]] if is_main else [one.path]
        flags = [
            f"--{end}"
            for path in reversed(paths)
            for end in _ends(path)
            if end == ".".join(path) or (ends[end] == 1 and end not in top)
        ]
        options.append(replace(one, flags=tuple(flags)))
    return options


def make_parser(options: Sequence[Option], program: str = PROGRAM) -> RecipeParser:
    """Build the parser; an option that no flag sets is absent from its result."""
    parser = RecipeParser(
        prog=program,
        usage=f"{program} (--interactions FILE [--items FILE] [--users FILE] | --config RECIPE) "
        "[--option value ...]",
        description="Train a recommender on your tables, compare it with simpler models, and save "
        "it. Without --config the options that you leave out are chosen to fit the tables; the "
        "defaults below are those of a recipe.",
        epilog="An option may be written with its section too: --training.loss.t. A list is "
        "written a b, a,b or '[a, b]'; a key of a mapping as --overrides.hidden_size 32.",
        formatter_class=_FirstFlag,
        allow_abbrev=False,
    )
    recipes = ", ".join(shipped_names("recipes"))
    parser.add_argument(
        "--config", default="", metavar="RECIPE", help=f"a YAML file, or one of: {recipes}"
    )
    groups: dict[str, Any] = {}
    for one in options:
        title = ".".join(one.path[:-1]) or "run"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        nargs: dict[str, Any] = {"nargs": "+"} if one.takes_list else {}
        if one.annotation is bool:
            nargs = {"nargs": "?", "const": "true"}
        groups[title].add_argument(
            *one.flags,
            dest=".".join(one.path),
            default=argparse.SUPPRESS,
            metavar=one.values_in_help,
            help=one.help_line.replace("%", "%%"),
            **nargs,
        )
    return parser


class _FirstFlag(argparse.HelpFormatter):
    """Shows one flag for each option, of the several that set it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.dest == "help":
            return super()._format_action_invocation(action)
        flag, value = action.option_strings[0], action.metavar
        return f"{flag} [{value}]" if action.nargs == "?" else f"{flag} {value}"


def _walk(section: Any, path: tuple[str, ...]) -> Iterator[tuple[Option, bool]]:
    """Yield the options of a section and of those inside it, and whether it is named by them."""
    hints = get_type_hints(section)
    for f in fields(section):
        if is_dataclass(hints[f.name]):
            yield from _walk(hints[f.name], (*path, f.name))
        else:
            default = f.metadata["read_by"] or getattr(section(), f.name)
            help_text, needs = f.metadata["help"], f.metadata["needs"]
            help_text += f"; needs {needs}" if needs else ""
            choices = tuple(f.metadata["choices"])
            one = Option((*path, f.name), hints[f.name], default, help_text, choices)
            yield one, f.name == section.main


def _ends(path: Sequence[str]) -> list[str]:
    """Return `a.b.c`, `b.c` and `c` of a path, shortest first."""
    return [".".join(path[start:]) for start in reversed(range(len(path)))]


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def _list_of(words: Sequence[str], flag: str) -> Any:
    """Return the parts of a list's words, which may be YAML; one part alone stays a text."""
    text = " ".join(words).strip()
    if text.startswith("["):
        return _yaml(text, flag)
    parts = [part.strip() for word in words for part in word.split(",")]
    return parts[0] if len(parts) == 1 else parts


def _yaml(text: str, flag: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{flag} must be YAML, got {text!r}: {error}") from None


def _keys_of_mappings(
    options: Sequence[Option], rest: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield keys and values of flags such as `--overrides.hidden_size 32`; refuse the others."""
    words = iter([w for word in rest for w in (word.split("=", 1) if word[:2] == "--" else [word])])
    flags = {flag: one for one in options for flag in one.flags}
    for word in words:
        owner = next(
            (f for f, o in flags.items() if o.takes_mapping and word.startswith(f"{f}.")), ""
        )
        if not owner:
            raise ValueError(f"unknown flag {word!r}{near(word, flags)}; --help lists all")
        text = next(words, None)
        if text is None:
            raise ValueError(f"flag {word!r} needs a value")
        value = _yaml(text, word)
        with suppress(ValueError):  # YAML 1.1 reads 1e-4 as text
            value = float(value) if isinstance(value, str) else value
        yield (*flags[owner].path, *word.removeprefix(f"{owner}.").split(".")), value


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a key of a mapping, in whose place a section's main option alone may stand."""
    section: Any = Recipe
    for name in path[:-1]:
        hint = get_type_hints(section).get(name) if is_dataclass(section) else None
        inner = as_mapping(values.get(name), hint) if is_dataclass(hint) else values.get(name)
        values[name] = dict(inner) if isinstance(inner, Mapping) else {}
        values, section = values[name], hint
    values[path[-1]] = value
