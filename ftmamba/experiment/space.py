"""A demonstration Space of a checkpoint."""

from pathlib import Path

from huggingface_hub import HfApi

from ftmamba.checkpoint import load_checkpoint
from ftmamba.experiment.card_examples import typical_record
from ftmamba.recipe import recipe_from_dict
from hub_cards.space_folder import SpaceFacts, push_space, write_space

__all__ = ["SpaceFacts", "push_space", "space_of", "write_space"]


def space_of(model: str, *, revision: str | None = None) -> SpaceFacts:
    """Return what a Space needs to know of a checkpoint; a branch is pinned to its commit.

    Args:
        model: Hub id, or a folder for a page on this machine.
        revision: branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: neither a folder nor a repository is there.
        ValueError: it is no checkpoint, or a damaged one.
    """
    folder = Path(model).expanduser()
    checkpoint = load_checkpoint(model, revision=revision)
    recipe = recipe_from_dict(dict(checkpoint.recipe))
    example = recipe.examples.record or typical_record(
        checkpoint.extractor, checkpoint.results.get("data", {})
    )
    if folder.is_dir():
        return SpaceFacts(str(folder.resolve()), example=example, title=recipe.card.title)
    commit = HfApi().model_info(model, revision=revision).sha or ""
    return SpaceFacts(
        model, commit, example=example, title=recipe.card.title, licence=recipe.card.licence
    )
