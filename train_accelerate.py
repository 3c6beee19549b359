"""Train and evaluate a two-tower recommender: `accelerate launch train_accelerate.py --config ...`.

The recipe holds every option; a flag overrides it; `--help` lists them all.
"""

import sys
from collections.abc import Sequence

from ftmamba.recipe import load_recipe
from ftmamba.training.run import make_accelerator, read_tables, split_tables, train

BAD_INPUT = 2


def main(argv: Sequence[str]) -> int:
    """Run a recipe and return the exit code: 0, or 2 after bad input."""
    try:
        recipe = load_recipe(argv)
        accelerator = make_accelerator(recipe)
        tables = read_tables(recipe.data, recipe.schema, accelerator)
        split = split_tables(tables, recipe)
    except (ValueError, OSError) as error:
        print(f"train_accelerate.py: error: {error}", file=sys.stderr)
        return BAD_INPUT
    trained = train(recipe, tables, split, accelerator)
    if accelerator.is_main_process:
        trained.model.save_pretrained(recipe.output_dir)
        trained.data.extractor.save_pretrained(recipe.output_dir)
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
