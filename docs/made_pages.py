"""Pages of the site that are made when it is built, and committed nowhere.

A hook of MkDocs (see mkdocs.yml). It makes the front page of README.md, the pages of
CONTRIBUTING.md and CHANGELOG.md, a page of each notebook, and the reference of every option: of a
recipe, of a column and of the model, each from its declaration.
"""

import inspect
import io
import json
import math
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from ftmamba.flags import list_options
from ftmamba.recipe import Recipe
from modeling_ftmamba import configuration_ftmamba
from modeling_ftmamba.configuration_ftmamba import (
    HISTORY,
    Column,
    FTMambaArchitecture,
    FTMambaConfig,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES_OF_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}

_ABOUT_OPTIONS = """
Every option is also a flag of `ftmamba train` and of `train_accelerate.py`, and an argument of
`Recommender.fit`: `num_epochs` is `--num_epochs 5` and `num_epochs=5`. Where two options have the
same name, the flag that tells them apart is given. An option that nothing reads in the chosen mode
is refused, unless it has its default. Without `--config` and in `Recommender.fit`, options that you
do not give are chosen to fit the data; the defaults below are those of a recipe.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages to the site's files."""
    for path, text in made_pages(Path(config.docs_dir)).items():
        files.append(File.generated(config, path, content=text))
    return files


def made_pages(docs: Path) -> dict[str, str]:
    """Return the text of every made page by its path in the site."""
    pages = {
        page: with_links_of_site((ROOT / name).read_text(encoding="utf-8"))
        for name, page in PAGES_OF_ROOT.items()
    }
    pages["reference/recipe.md"] = recipe_page()
    pages["reference/columns.md"] = columns_page()
    pages["reference/model.md"] = model_page()
    for notebook in sorted((docs / "notebooks").glob("*.ipynb")):
        pages[f"notebooks/{notebook.stem}.md"] = notebook_page(notebook)
    return pages


def with_links_of_site(text: str) -> str:
    """Return a text of the root folder with its links as seen from the site's own root."""
    text = re.sub(r'(\]\(|src=")docs/', r"\1", text)
    for name, page in PAGES_OF_ROOT.items():
        text = text.replace(f"]({name})", f"]({page})")
    return re.sub(r"\[([^]]+)\]\(CITATION\.cff\)", r"\1", text)


def notebook_page(notebook: Path) -> str:
    """Return the texts and the code of a notebook, whose outputs are not committed."""
    parts = [f"*A notebook: [{notebook.name}]({notebook.name}), to run and to change.*"]
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
    title = parts.pop(1)  # the first cell starts with it
    return "\n\n".join([title, *parts]) + "\n"


def recipe_page() -> str:
    """Return the reference of a recipe, one table a section."""
    flags = {one.path: one.flags[0] for one in list_options()}
    lines = ["# Options of a recipe", "", _ABOUT_OPTIONS]
    for path, section in sections_of(Recipe, ()):
        title = ".".join(path)
        lines += ["", f"## {title or 'Top level'}", "", inspect.getdoc(section) or ""]
        if section.main:
            lines += ["", f"`{title}: TEXT` is short for `{title}: {{{section.main}: TEXT}}`."]
        lines += [
            "",
            "| option | default | values | what it does |",
            "|---|---|---|---|",
        ]
        hints = get_type_hints(section)
        for field in fields(section):
            if not is_dataclass(hints[field.name]):
                *cells, meaning = option_cells(field.metadata, hints[field.name])
                flag = flags[*path, field.name]
                meaning += "" if flag == f"--{field.name}" else f". Flag: `{flag}`"
                lines.append(row(f"`{field.name}`", *cells, meaning))
    return "\n".join(lines) + "\n"


def sections_of(section: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a section and all within it, each with its path."""
    yield path, section
    hints = get_type_hints(section)
    for field in fields(section):
        if is_dataclass(hints[field.name]):
            yield from sections_of(hints[field.name], (*path, field.name))


def option_cells(about: Mapping[str, Any], annotation: Any) -> Sequence[str]:
    """Return default, values and meaning of an option of a recipe."""
    meaning = about["help"]
    if about["needs"]:
        meaning += f". Read only with `{about['needs']}`"
    if about["read_by"] is None:
        return code(about["default"]), values_of(about, annotation), meaning
    defaults = about["read_by"].values()
    readers = ", ".join(f"`{choice}`" for choice in about["read_by"])
    same = len({str(one) for one in defaults}) == 1
    default = code(next(iter(defaults))) if same else ", ".join(
        f"{choice}: {code(one)}" for choice, one in about["read_by"].items()
    )  # fmt: skip
    return default, values_of(about, annotation), f"{meaning}. Read by {readers}"


def values_of(about: Mapping[str, Any], annotation: Any) -> str:
    """Return the type of an option with its choices or its range."""
    if about["choices"]:
        return ", ".join(code(one) for one in about["choices"])
    kind = type_words(annotation)
    least, most = about["least"], about["most"]
    if most < math.inf:
        return f"{kind}, {least:g} to {most:g}"
    return f"{kind}, at least {least:g}" if least > -math.inf else kind


def type_words(annotation: Any) -> str:
    """Return a type in the words of YAML."""
    words = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    for python, yaml in (
        (r"^(tuple|list)\b.*", "list"), (r"^dict\b.*", "mapping"), (r"\bstr\b", "text"),
        (r"\bint\b", "whole number"), (r"\bfloat\b", "number"), (r"\bbool\b", "true or false"),
        (r"\bNone\b", "null"), (r" \| ", " or "), (r"^typing\.Any$", "any"),
        (r"^number or whole number$", "number"),
    ):  # fmt: skip
        words = re.sub(python, yaml, words)
    return words


def columns_page() -> str:
    """Return the reference of the columns of a schema."""
    readers = {**configuration_ftmamba._KINDS_READING, "max_length": ("categories", HISTORY)}
    names = {
        "`UNSEEN_ID`": "the id of unseen values",
        "`SCALINGS`": ", ".join(map(code, configuration_ftmamba.SCALINGS)),
        "`EVENT_FEATURES`": ", ".join(map(code, configuration_ftmamba.EVENT_FEATURES)),
    }
    chosen, fitted = [], []
    for name, text in comments_of(Column).items():
        for constant, words in names.items():
            text = text.replace(constant, words)  # noqa: PLW2901
        if text.lower().startswith("fitted"):
            fitted.append(row(f"`{name}`", text.split("; ", 1)[1]))
        elif name not in ("name", "kind"):
            kinds = ", ".join(map(code, readers[name]))
            default = code(Column.__dataclass_fields__[name].default)
            chosen.append(row(f"`{name}`", default, kinds, text))
    lines = [
        "# Columns of a schema",
        "",
        "In a schema a column is its kind alone, `age: numeric`, or a mapping with options,",
        '`genres: {kind: categories, separator: " "}`. How a schema is written is in',
        "[Your own tables](../tables.md).",
        "",
        f"Kinds: {', '.join(map(code, configuration_ftmamba.KINDS))}.",
        "",
        "| option | default | read by kind | what it does |",
        "|---|---|---|---|",
        *chosen,
        "",
        "`popularity_days` is set once for all, beside `columns`: `popularity_days: [7, 30]`.",
        "",
        "## Fitted from the training rows",
        "",
        "A checkpoint has these too; a schema does not set them.",
        "",
        "| field | what it is |",
        "|---|---|",
        *fitted,
    ]
    return "\n".join(lines) + "\n"


def model_page() -> str:
    """Return the reference of the model's configuration."""
    readers = {
        name: need for need, names, _ in configuration_ftmamba._READERS for name in names.split()
    }
    bounds = {
        name: rule for names, rule, _ in configuration_ftmamba._BOUNDS for name in names.split()
    }
    choices = {
        name: ", ".join(code(one) for one in values)
        for name, values in configuration_ftmamba._CHOICES.items()
    }
    lines = [
        "# Fields of the model",
        "",
        "Fields of `FTMambaConfig`: in a recipe `model.overrides`, on the command line",
        "`--overrides.hidden_size 32`. A preset of `configuration/presets/` sets them together;",
        "`user_tower` and `item_tower` may each depart from the values that both share. A field",
        "that nothing reads in the chosen mode is refused, unless it has its default.",
    ]
    for section in (FTMambaArchitecture, FTMambaConfig):
        shared = section is FTMambaArchitecture
        lines += ["", "## Of both towers" if shared else "## Of the two together", ""]
        lines += ["| field | default | values | read by | what it does |", "|---|---|---|---|---|"]
        for name, meaning in comments_of(section).items():
            values = choices.get(name) or type_words(section.__annotations__[name])
            values += f", {bounds[name]}" if name in bounds else ""
            default = code(section.__dataclass_fields__[name].default)
            lines.append(row(f"`{name}`", default, values, readers.get(name, "all"), meaning))
    return "\n".join(lines) + "\n"


def comments_of(section: type) -> dict[str, str]:
    """Return what the source says of each field: the comment above it and the one beside it."""
    found = dict.fromkeys((one for one in section.__annotations__ if one[0] != "_"), "")
    above: list[str] = []
    for tokens in lines_of_tokens(inspect.getsource(section)):
        comments = [one.string[1:].strip() for one in tokens if one.type == tokenize.COMMENT]
        words = [one.string for one in tokens if one.type in (tokenize.NAME, tokenize.OP)]
        if not words:
            above = [*above, *comments] if comments else []
            continue
        if words[0] in found and words[1:2] == [":"]:
            found[words[0]] = " ".join([*above, *comments])
        above = []
    return found


def lines_of_tokens(source: str) -> Iterator[list[tokenize.TokenInfo]]:
    """Yield the tokens of each physical line."""
    line: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line.append(token)
        if token.type in (tokenize.NEWLINE, tokenize.NL):
            yield line
            line = []


def code(value: Any) -> str:
    """Return a value as YAML has it, in code."""
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{json.dumps(plain)}`"


def row(*cells: str) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
