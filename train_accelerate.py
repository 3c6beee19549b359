"""Train and evaluate a two-tower recommender: `accelerate launch train_accelerate.py --config ...`.

The recipe holds every option; a flag overrides it; `--help` lists them all.
"""

import logging
import sys
from collections.abc import Sequence

from ftmamba import Recommender
from ftmamba.checkpoint import save_checkpoint
from ftmamba.evaluation import results_table
from ftmamba.experiment import (
    check_rivals_and_baselines,
    compare,
    make_checkpoint,
    tell_examples,
)
from ftmamba.recipe import Recipe, load_recipe
from ftmamba.training.run import make_accelerator, read_tables, split_tables, train
from hub_cards import push_checkpoint

BAD_INPUT = 2

logger = logging.getLogger("ftmamba")


def main(argv: Sequence[str]) -> int:
    """Run a recipe and return the exit code: 0, or 2 after bad input."""
    try:
        run(load_recipe(argv))
    except (ValueError, OSError) as error:
        print(f"train_accelerate.py: error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def run(recipe: Recipe) -> None:
    """Train, compare, save, tell."""
    check_rivals_and_baselines(recipe)
    accelerator = make_accelerator(recipe)
    tables = read_tables(recipe.data, recipe.schema, accelerator)
    split = split_tables(tables, recipe)
    trained = train(recipe, tables, split, accelerator)
    comparison = compare(recipe, tables, split, trained, accelerator)
    if accelerator.is_main_process:
        save_checkpoint(
            recipe.output_dir, make_checkpoint(recipe, tables, split, trained, comparison)
        )
        print(f"\nTest: {split.description}; {comparison.protocol}\n")
        print(results_table(comparison.evaluations, k=max(recipe.evaluation.k)))
        recommender = Recommender.from_pretrained(recipe.output_dir)
        if told := tell_examples(recommender, recipe.examples, tables, split.before_test):
            print(f"\n{told}")
        print(f"\nCheckpoint and all_results.json: {recipe.output_dir}")
        if recipe.push_to_hub:
            commit = push_checkpoint(recipe.output_dir, recipe.hub_model_id)
            logger.info("pushed to %s, commit %s", recipe.hub_model_id, commit)
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
