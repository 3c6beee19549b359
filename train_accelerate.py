"""Train and evaluate a two-tower recommender: `accelerate launch train_accelerate.py --config ...`.

The recipe holds every option; a flag overrides it; `--help` lists them all.
"""

import sys
from collections.abc import Sequence

from ftmamba import Recommender
from ftmamba.checkpoint import save_checkpoint
from ftmamba.comparison import (
    Comparison,
    check_group_columns,
    check_rivals_and_baselines,
    compare,
)
from ftmamba.data.tables import Tables
from ftmamba.evaluation import Split, results_table
from ftmamba.flags import load_recipe
from ftmamba.hub import hide_tokens, known_tokens
from ftmamba.recipe import Recipe
from ftmamba.results import make_checkpoint, measured_cost, show_examples
from ftmamba.training.run import make_accelerator, read_tables, split_tables, train
from hub_cards import with_card
from hub_cards.training_push import check_hub, pushing

BAD_INPUT = 2


def main(argv: Sequence[str]) -> int:
    """Run a recipe and return the exit code: 0, or 2 after bad input."""
    try:
        run(load_recipe(argv))
    except (ValueError, OSError) as error:
        message = hide_tokens(str(error), known_tokens())
        print(f"train_accelerate.py: error: {message}", file=sys.stderr)
        return BAD_INPUT
    return 0


def run(recipe: Recipe) -> None:
    """Train, compare, save, push, and print the results."""
    check_rivals_and_baselines(recipe)
    check_hub(recipe)
    accelerator = make_accelerator(recipe)
    tables = read_tables(recipe.data, recipe.schema, accelerator)
    check_group_columns(recipe.evaluation.user_groups, tables)
    split = split_tables(tables, recipe)
    with pushing(recipe, tables, is_main=accelerator.is_main_process) as hub:
        with measured_cost(recipe.card.country) as cost:
            on_checkpoint = None if hub is None else hub.on_save
            trained = train(recipe, tables, split, accelerator, on_checkpoint=on_checkpoint)
        comparison = compare(recipe, tables, split, trained, accelerator)
        if accelerator.is_main_process:
            checkpoint = make_checkpoint(recipe, tables, split, trained, comparison, cost=cost)
            save_checkpoint(
                recipe.output_dir, with_card(checkpoint), max_shard_size=recipe.max_shard_size
            )
            if hub is not None:
                hub.finish()
            print_results(recipe, tables, split, comparison)
    accelerator.end_training()


def print_results(recipe: Recipe, tables: Tables, split: Split, comparison: Comparison) -> None:
    """Print the results and a few recommendations of the checkpoint."""
    print(f"\nTest: {split.description}; {comparison.protocol}\n")
    print(results_table(comparison.evaluations, k=max(recipe.evaluation.k)))
    recommender = Recommender.from_pretrained(recipe.output_dir)
    if examples := show_examples(recommender, recipe.examples, tables, split.before_test):
        print(f"\n{examples}")
    print(f"\nCheckpoint and all_results.json: {recipe.output_dir}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
