"""Which files of a checkpoint are published, and what in them may not be: tokens, personal values.

`PUBLISHED_FILES` lists what may go, not what may not: known users (`local/`), training state and
logs are in the same folder.
"""

import logging
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from ftmamba.checkpoint import (
    CARD_FILE,
    CURVES_FILE,
    PUBLISHED_FILES,
    RECIPE_FILE,
    REQUIREMENTS_FILE,
    check_published,
    read_recipe_file,
)
from ftmamba.checks import LOCAL_FOLDER, read_json
from ftmamba.hub import hide_tokens, holds_token
from ftmamba.training.checkpoints import STATE_FILES
from modeling_ftmamba.catalogue import CATALOGUE_NAME, Catalogue
from modeling_ftmamba.configuration_ftmamba import TOWERS
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

logger = logging.getLogger(__name__)

HANDLER_FILE = "handler.py"
TRAINING_FOLDER = "last-checkpoint"
"""Folder of the state that training resumes from, where that is pushed."""

STALE_IF_LEFT = (
    "model*.safetensors",
    "model.safetensors.index.json",
    CATALOGUE_NAME,
    CURVES_FILE,
    f"{TRAINING_FOLDER}/*",
)
"""Files of an earlier push that would contradict a later one which has none of that name."""

_PATHS: dict[str | None, tuple[str, ...]] = {
    None: ("output_dir",),
    "data": ("users", "items", "interactions", "folder", "cache_dir"),
    "model": ("preset",),
    "training": ("resume_from_checkpoint",),
}
"""Options of a recipe, by section, that name files and folders."""

_NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json", CARD_FILE)
_SIBLING = re.compile(r"^\s*from\s+\.(\w+)\s+import\b", re.MULTILINE)
_TEXTS = (".json", ".md", ".py", ".txt", ".yaml")
_RUNTIME = ("torch", "transformers", "huggingface-hub", "safetensors", "numpy")
"""What the code of a checkpoint needs, as the Hub's endpoints install it."""

MOST_VALUES = 20_000
"""Values of a column that are looked at, the most frequent first."""

_FEW, _MOST = 0.02, 0.5
_ENOUGH = 50
"""Fewer values than this are a list of choices, not ids."""

_EMAIL = re.compile(r"[^\s@,;]+@[^\s@,;]+\.[A-Za-z]{2,}")
_PHONE = re.compile(r"(?:\+|\(?0)[\d\s()./-]{6,18}\d|\(?\d{3}\)?[\s.-]+\d{3}[\s.-]\d{4}")
_ADDRESS = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}", re.IGNORECASE)
_IDS = (
    re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE),
    re.compile(r"(?=[a-f]*\d)[0-9a-f]{12,}", re.IGNORECASE),
    re.compile(r"\d{6,}"),
)
_NAMES = re.compile(
    r"(?:^|_)(?:e?_?mail|phone|mobile|tel|ssn|passport|iban|ip|ip_address|address|street|surname|"
    r"first_?name|last_?name|full_?name|birth_?date|dob)(?:$|_)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PublishedFile:
    """A file as it will be published.

    Attributes:
        name: its path in the repository.
        content: a path on the disk, or the bytes where they differ from those on the disk.
    """

    name: str
    content: Path | bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Its bytes."""
        held = self.content
        return held.stat().st_size if isinstance(held, Path) else len(held)

    def read_bytes(self) -> bytes:
        """Return its content."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content


def published_files(
    folder: Path,
    *,
    with_catalogue: bool = True,
    with_training_state: bool = False,
    tokens: Sequence[str] = (),
) -> list[PublishedFile]:
    """List what of a checkpoint would be published, by name.

    The handler of the Hub's endpoints, which needs the catalogue, and its requirements are added
    where the folder has none. Tokens in texts are hidden and a warning is logged.

    Args:
        folder: of the checkpoint.
        with_catalogue: include the items' keys, titles and embeddings.
        with_training_state: include what resuming needs, where the folder holds it.
        tokens: which must not be published.

    Raises:
        FileNotFoundError: the folder lacks a file that a checkpoint needs.
        ValueError: a table's values hold a token, a file links to private data, or weights,
            processor or catalogue are damaged or of different saves.
    """
    missing = [
        name
        for name in _NEEDED
        if not (folder / name).is_file()
        and not (name == "model.safetensors" and (folder / f"{name}.index.json").is_file())
    ]
    if missing:
        raise FileNotFoundError(
            f"cannot push {str(folder)!r}: it lacks {', '.join(missing)}; "
            "give the output_dir of a finished run"
        )
    code = code_files(folder)
    recipe = read_recipe_file(folder / RECIPE_FILE)
    private = _private_texts(recipe, folder)
    paths = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and any(fnmatch(path.name, pattern) for pattern in PUBLISHED_FILES)
        and (path.suffix != ".py" or path.name in code)
        and (with_catalogue or path.name != CATALOGUE_NAME)
    ]
    if with_training_state:
        paths += [path for name in STATE_FILES for path in [folder / TRAINING_FOLDER / name]
                  if path.is_file()]  # fmt: skip
    local = (folder / LOCAL_FOLDER).resolve()
    for path in paths:
        if path.resolve().is_relative_to(local):
            raise ValueError(
                f"cannot push {str(path)!r}: it links to {LOCAL_FOLDER}/, whose records of users "
                "never leave the machine; remove the link"
            )
    found = [PublishedFile(path.relative_to(folder).as_posix(), path) for path in paths]
    names = {one.name for one in found}
    if with_catalogue:
        handler = (package_files("hub_cards") / HANDLER_FILE).read_bytes()
        added = {HANDLER_FILE: handler, REQUIREMENTS_FILE: _requirements().encode()}
        found += [PublishedFile(name, text) for name, text in added.items() if name not in names]
    if RECIPE_FILE in names:
        public = yaml.safe_dump(cleaned_recipe(recipe), sort_keys=False, allow_unicode=True)
        if public != (folder / RECIPE_FILE).read_text(encoding="utf-8"):
            found = [one for one in found if one.name != RECIPE_FILE]
            found.append(PublishedFile(RECIPE_FILE, public.encode()))
    found = sorted((_cleaned(one, private, tokens) for one in found), key=lambda one: one.name)
    extractor, catalogue = check_published(folder, with_catalogue=CATALOGUE_NAME in names)
    _refuse_tokens(extractor, catalogue)
    return found


def _refuse_tokens(extractor: FTMambaFeatureExtractor, catalogue: Catalogue | None) -> None:
    """Raise ValueError where a published value of a table holds an access token."""
    values: dict[str, Sequence[str]] = {}
    for tower in TOWERS:
        for column in extractor.columns(tower):
            if column.kind in ("categorical", "categories"):
                known = extractor.known_values(tower, column.name)
                values[f"{column.name!r} of the {tower}s"] = known
    if catalogue is not None:
        values |= {"the items' keys": catalogue.keys, "the items' titles": catalogue.titles}
    for what, texts in values.items():
        if holds_token(texts):
            raise ValueError(
                f"cannot push: the values of {what} hold what looks like an access token; take it "
                "out of the tables and train again"
            )


def cleaned_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe as it is published: which data, but not where they are, and no user's key.

    Of a path the name is kept, of an address what comes before its question mark, without a
    password.
    """
    values = {name: dict(one) if isinstance(one, Mapping) else one for name, one in recipe.items()}
    for section, names in _PATHS.items():
        own: Any = values if section is None else values.get(section)
        for name in names if isinstance(own, dict) else ():
            if name in own:
                own[name] = _public(own[name])
    if isinstance(evaluation := values.get("evaluation"), dict):
        rivals = evaluation.get("rivals")
        for name, rival in rivals.items() if isinstance(rivals, Mapping) else ():
            if isinstance(rival, Mapping) and "preset" in rival:
                public = {**rival, "preset": _public(rival["preset"])}
                evaluation["rivals"] = {**evaluation["rivals"], name: public}
    if isinstance(examples := values.get("examples"), dict):
        examples |= {"user_key": ""} if examples.get("user_key") else {}
        schema = recipe.get("schema")
        users = schema.get("users") if isinstance(schema, Mapping) else None
        key = users.get("key") if isinstance(users, Mapping) else None
        if isinstance(record := examples.get("record"), Mapping):
            examples["record"] = {name: one for name, one in record.items() if name != key}
    return values


def _public(value: Any) -> Any:
    """Return a path, an address, or a list of them, without what only its owner should know."""
    if isinstance(value, list | tuple):
        return [_public(one) for one in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        parts = urlsplit(value)
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
        return parts.geturl() if parts.scheme != "file" else PurePosixPath(parts.path).name
    is_whole = PurePosixPath(value).is_absolute() or PureWindowsPath(value).drive
    return PureWindowsPath(value).name if is_whole or value.startswith("~") else value


def _private_texts(recipe: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return the texts of a recipe that are not published, and what replaces them, long ones first.

    A card and results may repeat them.
    """
    found = {str(folder): folder.name, str(Path.home()): "~"}
    for section, names in _PATHS.items():
        own: Any = recipe if section is None else recipe.get(section)
        for name in names if isinstance(own, Mapping) else ():
            given = own.get(name)
            for one in given if isinstance(given, list | tuple) else [given]:
                if isinstance(one, str) and (public := _public(one)) != one:
                    found[one] = public
    return {one: found[one] for one in sorted(found, key=len, reverse=True) if len(one) > 3}


def list_contents(files: Sequence[PublishedFile]) -> str:
    """Lay out names and sizes, the code in one line and the sum last."""
    code = [one.size for one in files if one.name.endswith(".py") and one.name != HANDLER_FILE]
    rows = [
        (one.name, one.size)
        for one in files
        if one.name == HANDLER_FILE or not one.name.endswith(".py")
    ]
    rows += [(f"{len(code)} files of code (*.py)", sum(code))] if code else []
    rows.append((f"{len(files)} files", sum(one.size for one in files)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {_size(n_bytes):>8}" for name, n_bytes in rows)


def _size(n_bytes: float) -> str:
    units = iter(("B", "KB", "MB", "GB"))
    unit = next(units)
    while n_bytes >= 1000 and unit != "GB":
        n_bytes, unit = n_bytes / 1000, next(units)
    return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:.1f} {unit}"


def code_files(folder: Path) -> set[str]:
    """Return the Python files that the checkpoint's own code is made of; others stay."""
    waiting = {HANDLER_FILE}
    for name in ("config.json", "preprocessor_config.json"):
        values = read_json(folder / name)
        references = list(values.get("auto_map", {}).values())
        references += [one.get("impl") for one in values.get("custom_pipelines", {}).values()]
        waiting |= {
            f"{reference.rpartition('--')[2].partition('.')[0]}.py"
            for reference in references
            if isinstance(reference, str)
        }
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found and (folder / name).is_file():
            found.add(name)
            source = (folder / name).read_text(encoding="utf-8")
            waiting |= {f"{module}.py" for module in _SIBLING.findall(source)}
    return found


def _requirements() -> str:
    """Return what a checkpoint's code needs, with this project's lower bounds, and the project."""
    try:
        declared, own = requires("ftmamba") or [], f"ftmamba>={version('ftmamba')}"
    except PackageNotFoundError:
        declared, own = [], "ftmamba"
    by_name = {
        re.split(r"[<>=!~\[ (]", one)[0].lower().replace("_", "-"): one
        for one in declared
        if ";" not in one
    }
    lines = [by_name.get(name, name) for name in _RUNTIME]
    return "\n".join([*lines, own, ""])


def _cleaned(
    file: PublishedFile, private: Mapping[str, str], tokens: Sequence[str]
) -> PublishedFile:
    """Return a file without tokens and, but in code, without a machine's paths."""
    if not file.name.endswith(_TEXTS):
        if isinstance(file.content, Path) and _holds_token(file.content, tokens):
            raise ValueError(
                f"cannot push {file.name}: it holds your access token; take the value out of the "
                "tables and train again, or revoke the token"
            )
        return file
    text = public = file.read_bytes().decode()
    if not file.name.endswith(".py"):
        for one, replacement in private.items():
            public = public.replace(one, replacement)
    hidden = hide_tokens(public, tokens)
    if hidden != public:
        logger.warning(
            "%s held an access token; it is pushed without it: revoke that token", file.name
        )
    return file if hidden == text else PublishedFile(file.name, hidden.encode())


def _holds_token(path: Path, tokens: Sequence[str]) -> bool:
    """Search a file without reading it into memory."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(token.encode()) >= 0 for token in tokens)


def personal_warning(folder: Path) -> str:
    """Warn of columns whose values look personal and are published in the vocabularies.

    Returns:
        One warning for all columns, without any value; an empty text where none looks personal.
    """
    extractor = FTMambaFeatureExtractor.from_pretrained(folder)
    found = []
    for tower in ("user", "item"):
        for column in extractor.columns(tower):
            if column.kind not in ("categorical", "categories"):
                continue
            values = extractor.known_values(tower, column.name)
            is_key = tower == "user" and column.name == extractor.user_key
            why = "the key of the users" if is_key else looks_like(column.name, values, tower)
            if why and values:
                found.append(f"{column.name!r} of the {tower}s ({len(values)} values: {why})")
    if not found:
        return ""
    return (
        "these columns look personal, and their values are published in the vocabularies: "
        f"{'; '.join(found)}. Leave such a column out of the schema, or give it hash_buckets and "
        "max_vocabulary, and train again before you push to a public repository"
    )


def looks_like(name: str, values: Sequence[str], tower: str) -> str:
    """Return what a column's values look like, an empty text where they look harmless.

    Ids count only where they are a user's: an item's are its own.
    """
    sample = [value.strip() for value in values[:MOST_VALUES]]

    def share(pattern: re.Pattern[str]) -> float:
        return sum(bool(pattern.fullmatch(text)) for text in sample) / max(1, len(sample))

    if share(_EMAIL) > _FEW:
        return "e-mail addresses"
    if share(_PHONE) > _MOST:
        return "telephone numbers"
    if share(_ADDRESS) > _MOST:
        return "network addresses"
    if tower == "user" and len(sample) >= _ENOUGH and any(share(one) > _MOST for one in _IDS):
        return "free ids"
    return "by its name, personal data" if _NAMES.search(name) else ""
