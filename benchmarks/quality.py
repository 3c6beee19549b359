"""Quality under several splits: rolling global cuts, or random splits by seed.

    python benchmarks/quality.py --cuts 0.5 0.6 0.7 0.8 0.9 -- --config movielens-100k
    python benchmarks/quality.py --seeds 42 43 44 -- --config movielens-100k --split random

What follows `--` is a recipe's command line. Every model of the recipe, its rivals and its
baselines are fitted anew on each split; the users of all test parts are pooled. The table and the
paired differences go to standard output, all figures to `--output` as JSON.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ftmamba.comparison import compare
from ftmamba.evaluation import Evaluation, Report, paired_test, pool
from ftmamba.flags import load_recipe
from ftmamba.recipe import Recipe
from ftmamba.results import hardware
from ftmamba.training.run import make_accelerator, read_tables, split_tables, train


def main(argv: Sequence[str]) -> None:
    """Run every split and print the pooled table."""
    place = argv.index("--") if "--" in argv else len(argv)
    options = parse(argv[:place])
    runs = [
        load_recipe([*argv[place + 1 :], "--seed", str(seed), *cut])
        for cut in [["--cut", str(cut)] for cut in options.cuts] or [[]]
        for seed in options.seeds
    ]
    evaluations: dict[str, list[Evaluation]] = {}
    seconds: list[float] = []
    for recipe in runs:
        found, spent = run(recipe)
        seconds.append(spent)
        for name, evaluation in found.items():
            evaluations.setdefault(name, []).append(evaluation)
            tell(recipe, name, evaluation)
    pooled = {name: pool(parts) for name, parts in evaluations.items()}
    print(Report.of(pooled))
    differences = compare_all(evaluations, runs[0].evaluation.selection_metric)
    print(json.dumps(differences, indent=1))
    if options.output:
        facts = {
            "recipes": [recipe.to_dict() for recipe in runs],
            "models": {name: one.to_dict() for name, one in pooled.items()},
            "splits": {
                name: [part.to_dict()["metrics"] for part in map(summary, parts)]
                for name, parts in evaluations.items()
            },
            "differences": differences,
            "training_seconds": seconds,
            "hardware": hardware(),
            "versions": {name: version(name) for name in ("torch", "transformers", "implicit")},
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the script's own flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=float, nargs="*", default=[], help="rolling global cuts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="seeds of the runs")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    return parser.parse_args(argv)


def run(recipe: Recipe) -> tuple[dict[str, Evaluation], float]:
    """Train and compare under one split."""
    accelerator = make_accelerator(recipe)
    logging.getLogger("ftmamba").setLevel(logging.WARNING)
    tables = read_tables(recipe.data, recipe.schema, accelerator)
    split = split_tables(tables, recipe)
    trained = train(recipe, tables, split, accelerator)
    comparison = compare(recipe, tables, split, trained, accelerator)
    return dict(comparison.evaluations), trained.seconds


def tell(recipe: Recipe, name: str, evaluation: Evaluation) -> None:
    """Print one model's figure under one split."""
    metric = recipe.evaluation.selection_metric
    parts = [("all", evaluation), ("warm", evaluation.warm), ("cold", evaluation.cold)]
    words = [f"{part} {one.mean(metric):.4f} ({len(one)})" for part, one in parts if len(one)]
    print(f"cut {recipe.split.cut} seed {recipe.seed}  {name:16} {metric}  {'  '.join(words)}")
    sys.stdout.flush()


def compare_all(evaluations: dict[str, list[Evaluation]], metric: str) -> dict[str, str]:
    """Test the recipe's own model against each other one: all users, warm and cold apart."""
    own, *others = evaluations
    differences = {}
    for other in others:
        for part in ("all", "warm", "cold"):
            pairs = [[summary(one, part) for one in evaluations[name]] for name in (own, other)]
            if all(len(one) for side in pairs for one in side):
                differences[f"{own} - {other}, {part}"] = str(paired_test(*pairs, metric))
    return differences


def summary(evaluation: Evaluation, part: str = "all") -> Evaluation:
    """Return the evaluation of all, warm or cold users."""
    return evaluation if part == "all" else getattr(evaluation, part)


if __name__ == "__main__":
    main(sys.argv[1:])
