"""The files of a demonstration Space, and the way to the Hub."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCardData
from markupsafe import Markup

from ftmamba.hub import known_tokens
from hub_cards.card import render
from hub_cards.markdown import one_line, python
from hub_cards.push import Destination, hub_errors

GRADIO_VERSION = "6.31.0"
"""What the page was tested with; the Space installs it by its metadata."""

REQUIRED = ("torch", "transformers")
"""What the page imports besides; the versions installed here are asked for there."""

CARD_TEMPLATE = "space/README.md.jinja"
_PACKAGE = "demo"
_LONGEST_TITLE = 60


@dataclass(frozen=True)
class SpaceFacts:
    """What a demonstration is of.

    Attributes:
        model: Hub id, or a folder where the Space runs on this machine.
        revision: commit that the Space loads; empty for a folder.
        example: the record that the page opens with.
        title: of the page's card; empty names the model.
        licence: as the Hub spells it.
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


def space_files(facts: SpaceFacts) -> dict[str, str]:
    """Return the Space's files, path to text; they need Gradio, torch and transformers alone."""
    requirements = "".join(f"{name}=={version(name).split('+')[0]}\n" for name in REQUIRED)
    return {
        "app.py": _launcher(facts),
        "README.md": render(CARD_TEMPLATE, facts=facts, metadata=_metadata(facts)),
        "requirements.txt": requirements,
        **dict(_page()),
    }


def write_space(folder: Path, facts: SpaceFacts) -> None:
    """Write the files, to look at or to run with `python app.py`.

    Raises:
        FileExistsError: the folder holds something else.
    """
    found = space_files(facts)
    tops = {Path(name).parts[0] for name in found}
    if folder.is_dir():
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in tops)
        if foreign:
            raise FileExistsError(
                f"{str(folder)!r} holds {', '.join(foreign[:3])}, which is no part of a Space; "
                "give an empty or a new folder"
            )
    for name, text in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def push_space(
    facts: SpaceFacts, repo_id: str, *, private: bool = False, api: HfApi | None = None
) -> str:
    """Push the files in one commit, making the Space if need be; return the commit's id.

    Raises:
        ValueError: `repo_id` is no name of a Space.
        HubError: the Hub refused or could not be reached.
    """
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
        '"""Shows what a recommender recommends, and why; `python app.py` serves the page."""\n\n'
        f"from {_PACKAGE}.app import main\n\n"
        'if __name__ == "__main__":\n'
        "    main(\n"
        f"        {python(facts.model)},\n"
        f"        revision={python(facts.revision)},\n"
        f"        example={python(facts.example)},\n"
        "    )\n"
    )


def _page() -> Iterator[tuple[str, str]]:
    for source in files("hub_cards.space").iterdir():
        if source.name.endswith((".py", ".css")):
            yield f"{_PACKAGE}/{source.name}", source.read_text(encoding="utf-8")


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
