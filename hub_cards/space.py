"""A demonstration Space of a checkpoint: its files, written to a folder or pushed to the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCardData
from markupsafe import Markup

from ftmamba.checkpoint import load_checkpoint
from ftmamba.hub import known_tokens
from ftmamba.recipe import recipe_from_dict
from hub_cards.card import one_line, python, render
from hub_cards.facts import example_record
from hub_cards.push import Destination, hub_errors

GRADIO_VERSION = "6.31.0"
"""What the page was tested with; the Space installs it by its metadata."""

REQUIRED = ("torch", "transformers")
"""What the page needs besides; the versions installed here are asked for there."""

_LONGEST_TITLE = 60


@dataclass(frozen=True)
class SpaceFacts:
    """What a demonstration shows: a Hub id at a commit, or a folder without `revision`.

    `example` is the record that the page opens with; an empty `title` names the model.
    """

    model: str
    revision: str = ""
    example: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    licence: str = "apache-2.0"

    @property
    def heading(self) -> str:
        """The title, or one that names the model."""
        return self.title or f"What {Path(self.model).name} recommends"


def space_of(model: str, *, revision: str | None = None) -> SpaceFacts:
    """Return the facts of a checkpoint's Space; a branch is pinned to its commit."""
    folder = Path(model).expanduser()
    checkpoint = load_checkpoint(model, revision=revision)
    card = recipe_from_dict(dict(checkpoint.recipe)).card
    example = example_record(checkpoint)
    if folder.is_dir():
        return SpaceFacts(str(folder.resolve()), example=example, title=card.title)
    commit = HfApi().model_info(model, revision=revision).sha or ""
    return SpaceFacts(model, commit, example=example, title=card.title, licence=card.licence)


def space_files(facts: SpaceFacts) -> dict[str, str]:
    """Return the Space's files, name to text; without `ftmamba` they show no explanations."""
    requirements = "".join(f"{name}=={version(name).split('+')[0]}\n" for name in REQUIRED)
    package = files("hub_cards")
    return {
        "app.py": _launcher(facts),
        "page.py": (package / "space_page.py").read_text(encoding="utf-8"),
        "page.css": (package / "space_page.css").read_text(encoding="utf-8"),
        "README.md": render("space_card.md.jinja", facts=facts, metadata=_metadata(facts)),
        "requirements.txt": f"{requirements}ftmamba\n",
    }


def write_space(folder: Path, facts: SpaceFacts) -> None:
    """Write the files, to look at or to run with `python app.py`."""
    found = space_files(facts)
    if folder.is_dir():
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in found)
        if foreign:
            raise FileExistsError(
                f"{str(folder)!r} holds {', '.join(foreign[:3])}, which is no part of a Space; "
                "give an empty or a new folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in found.items():
        (folder / name).write_text(text, encoding="utf-8")


def push_space(
    facts: SpaceFacts, repo_id: str, *, private: bool = False, api: HfApi | None = None
) -> str:
    """Push the files in one commit, making the Space if need be; return the commit's id."""
    api = api or HfApi()
    space = Destination(repo_id).repo_id
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=text.encode())
        for name, text in space_files(facts).items()
    ]
    message = f"Show {facts.model} at {facts.revision[:8]}"
    with hub_errors(f"push the Space {space!r}", known_tokens(api.token)):
        api.create_repo(
            space, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        )
        commit = api.create_commit(space, operations, commit_message=message, repo_type="space")
    return str(commit.oid)


def _launcher(facts: SpaceFacts) -> str:
    return (
        '"""Shows what a model recommends, and why; `python app.py` serves the page."""\n\n'
        "from page import main\n\n"
        'if __name__ == "__main__":\n'
        "    main(\n"
        f"        {python(facts.model)},\n"
        f"        revision={python(facts.revision)},\n"
        f"        example={python(facts.example)},\n"
        "    )\n"
    )


def _metadata(facts: SpaceFacts) -> Markup:
    data = SpaceCardData(
        title=one_line(facts.heading, _LONGEST_TITLE),
        emoji="\N{SNAKE}",
        colorFrom="indigo",
        colorTo="purple",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        app_file="app.py",
        license=one_line(facts.licence),
        models=[one_line(facts.model)] if facts.revision else None,
        tags=["recommendation", "ftmamba"],
    )
    return Markup(data.to_yaml())
