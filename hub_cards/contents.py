"""What of a checkpoint's folder is published, and what it weighs."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, requires
from importlib.resources import files as package_files
from pathlib import Path

from hub_cards.secrets import hide_tokens, holds_token

logger = logging.getLogger(__name__)

PUBLISHED_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "vocabularies.safetensors",
    "*.py",
    "catalogue.safetensors",
    "README.md",
    "learning_curves.png",
    "requirements.txt",
    "all_results.json",
    "recipe.yaml",
)
"""Patterns of what may leave the machine. A list of what may go, not of what may not: known users
(`local/`), training state and logs lie in the same folder."""

CATALOGUE_FILE = "catalogue.safetensors"
CARD_FILE = "README.md"
HANDLER_FILE = "handler.py"
REQUIREMENTS_FILE = "requirements.txt"
TRAINING_FOLDER = "last-checkpoint"
"""Where the state that training resumes from goes, if it is asked for."""

STALE_IF_LEFT = (
    "model*.safetensors",
    "model.safetensors.index.json",
    CATALOGUE_FILE,
    "learning_curves.png",
    f"{TRAINING_FOLDER}/*",
)
"""Files of an earlier push that would contradict a later one which has none of that name."""

_NEEDED = ("config.json", "model.safetensors", "preprocessor_config.json", CARD_FILE)
_LOCAL_FOLDER = "local"
_SIBLING = re.compile(r"^\s*from\s+\.(\w+)\s+import\b", re.MULTILINE)
_TEXTS = (".json", ".md", ".py", ".txt", ".yaml")
_RUNTIME = ("torch", "transformers", "huggingface-hub", "safetensors", "numpy")
"""What the code of a checkpoint needs, as the Hub's endpoints install it."""


@dataclass(frozen=True)
class PublishedFile:
    """A file as it will be published.

    Attributes:
        name: its path in the repository.
        content: where it lies, or what it holds if that is not what lies there.
    """

    name: str
    content: Path | bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Its bytes."""
        held = self.content
        return held.stat().st_size if isinstance(held, Path) else len(held)

    def read_text(self) -> str:
        """Return its text."""
        held = self.content.read_bytes() if isinstance(self.content, Path) else self.content
        return held.decode("utf-8")


def published_files(
    folder: Path,
    *,
    with_catalogue: bool = True,
    with_training_state: bool = False,
    tokens: Sequence[str] = (),
) -> list[PublishedFile]:
    """List what of a checkpoint would be published, by name.

    The handler of the Hub's endpoints, which needs the catalogue, and its requirements are added
    where the folder has none. A token in a text is hidden, which is said in the log.

    Args:
        folder: of the checkpoint.
        with_catalogue: the items' keys, titles and embeddings too.
        with_training_state: what resuming needs too, where the folder holds it.
        tokens: which must not be published.

    Raises:
        FileNotFoundError: the folder lacks a file that a checkpoint needs.
        ValueError: a file holds a token where it cannot be hidden, or is a link to private data.
    """
    _check_whole(folder)
    code = _code_files(folder)
    paths = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and any(fnmatch(path.name, pattern) for pattern in PUBLISHED_FILES)
        and (path.suffix != ".py" or path.name in code)
        and (with_catalogue or path.name != CATALOGUE_FILE)
    ]
    if with_training_state:
        paths += sorted(path for path in (folder / TRAINING_FOLDER).glob("*") if path.is_file())
    _check_public(folder, paths)
    found = [PublishedFile(path.relative_to(folder).as_posix(), path) for path in paths]
    names = {one.name for one in found}
    if with_catalogue:
        found += [one for one in _files_of_endpoint() if one.name not in names]
    return sorted((_without_tokens(one, tokens) for one in found), key=lambda one: one.name)


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
    return "\n".join(f"{name:<{width}}  {_in_words(size):>8}" for name, size in rows)


def _in_words(size: float) -> str:
    units = iter(("B", "KB", "MB", "GB"))
    unit = next(units)
    while size >= 1000 and unit != "GB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def _check_whole(folder: Path) -> None:
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


def _check_public(folder: Path, paths: Sequence[Path]) -> None:
    private = (folder / _LOCAL_FOLDER).resolve()
    for path in paths:
        if path.resolve().is_relative_to(private):
            raise ValueError(
                f"cannot push {str(path)!r}: it links to {_LOCAL_FOLDER}/, whose records of users "
                "never leave the machine; remove the link"
            )


def _code_files(folder: Path) -> set[str]:
    """Return the Python files that the checkpoint's own code is made of; others stay."""
    waiting = {f"{module}.py" for module in _modules_named(folder)} | {HANDLER_FILE}
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found and (folder / name).is_file():
            found.add(name)
            waiting |= {f"{module}.py" for module in _imported_siblings(folder / name)}
    return found


def _modules_named(folder: Path) -> Iterator[str]:
    """Yield the modules in which `Auto` classes and pipelines look for their classes."""
    for name in ("config.json", "preprocessor_config.json"):
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        references = list(values.get("auto_map", {}).values())
        references += [one.get("impl") for one in values.get("custom_pipelines", {}).values()]
        for reference in references:
            if isinstance(reference, str):
                yield reference.rpartition("--")[2].partition(".")[0]


def _imported_siblings(path: Path) -> list[str]:
    found: list[str] = _SIBLING.findall(path.read_text(encoding="utf-8"))
    return found


def _files_of_endpoint() -> Iterator[PublishedFile]:
    handler = package_files("hub_cards") / HANDLER_FILE
    if handler.is_file():
        yield PublishedFile(HANDLER_FILE, handler.read_bytes())
        yield PublishedFile(REQUIREMENTS_FILE, _requirements().encode())


def _requirements() -> str:
    """Return the packages that a checkpoint's code needs, with this project's lower bounds."""
    try:
        declared = requires("ftmamba") or []
    except PackageNotFoundError:
        declared = []
    by_name = {_name_of(one): one for one in declared if ";" not in one}
    return "".join(f"{by_name.get(name, name)}\n" for name in _RUNTIME)


def _name_of(requirement: str) -> str:
    name = requirement
    for end in "<>=!~[ (":
        name = name.partition(end)[0]
    return name.strip().lower().replace("_", "-")


def _without_tokens(file: PublishedFile, tokens: Sequence[str]) -> PublishedFile:
    if not file.name.endswith(_TEXTS):
        if isinstance(file.content, Path) and holds_token(file.content, tokens):
            raise ValueError(
                f"cannot push {file.name}: it holds your access token; take the value out of the "
                "tables and train again, or revoke the token"
            )
        return file
    text = file.read_text()
    hidden = hide_tokens(text, tokens)
    if hidden == text:
        return file
    logger.warning("%s held an access token; it is pushed without it: revoke that token", file.name)
    return PublishedFile(file.name, hidden.encode())
