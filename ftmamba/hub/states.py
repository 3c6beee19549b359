"""What a run saves on its way, made ready to push: a checkpoint without users and results."""

import os
import shutil
from pathlib import Path

import yaml

from ftmamba.catalogue import embed_catalogue
from ftmamba.checkpoint import save_network
from ftmamba.checkpoint_folder import CARD_FILE, CATALOGUE_FILE, RECIPE_FILE
from ftmamba.data.tables import Tables
from ftmamba.recipe import Recipe
from ftmamba.training.progress import Progress
from ftmamba.training.saved import Saved
from hub_cards.contents import TRAINING_FOLDER
from hub_cards.merge import TITLE_FOR_NOW, UNDER_WAY, section

CARD = """---
license: {licence}
library_name: transformers
tags:
- ftmamba
- recommendation
---

# {title} {for_now}

{summary}"""

SUMMARY = """{under_way}
**This model is still being trained.** The files here are those of {step}. Figures further down, if
there are any, are of an earlier training; examples that pin a revision load what they pin.
"""


def write_state(folder: Path, saved: Saved, recipe: Recipe, tables: Tables) -> None:
    """Write a state of a run as a checkpoint that can be loaded and recommends.

    Args:
        folder: new.
        saved: the state.
        recipe: of the run; says whether the catalogue and what resuming needs belong to it.
        tables: of the run.
    """
    folder.mkdir(parents=True)
    extractor = saved.data.extractor
    save_network(folder, saved.model, extractor, max_shard_size=recipe.max_shard_size)
    if recipe.hub_catalogue:
        catalogue = embed_catalogue(
            saved.model,
            saved.data.catalogue_rows(),
            keys=tables.item_keys,
            titles=tables.item_titles,
            as_of=saved.data.as_of,
        )
        catalogue.save(folder / CATALOGUE_FILE)
    (folder / CARD_FILE).write_text(card_under_way(recipe, saved.progress), encoding="utf-8")
    (folder / RECIPE_FILE).write_text(
        yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    if recipe.hub_training_state:
        _take(saved.folder, folder / TRAINING_FOLDER)


def describe_step(progress: Progress, metric: str) -> str:
    """Say where a run stands and how good it is: "step 120, epoch 3: NDCG@10 0.2931"."""
    epoch = progress.epoch + bool(progress.batch)
    place = f"step {progress.step}, epoch {epoch}"
    scores = [one["score"] for one in progress.history if "score" in one]
    if scores:
        return f"{place}: {metric} {scores[-1]:.4f} on validation"
    losses = [one["loss"] for one in progress.history if "loss" in one]
    return f"{place}: loss {losses[-1]:.4f}" if losses else place


def card_under_way(recipe: Recipe, progress: Progress) -> str:
    """Return the card of a run that is not finished."""
    step = describe_step(progress, recipe.evaluation.selection_metric)
    summary = section("summary", SUMMARY.format(under_way=UNDER_WAY, step=step))
    title = recipe.card.title or recipe.hub_model_id.rpartition("/")[2]
    plain = " ".join(title.replace("<", "").replace(">", "").split())
    return CARD.format(
        licence=recipe.card.licence, title=plain, for_now=TITLE_FOR_NOW, summary=summary
    )


def _take(source: Path, target: Path) -> None:
    """Link a folder's files, so that they outlive it; copy them where links cannot be made."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)
