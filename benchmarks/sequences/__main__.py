"""Runs a study, or reports on what was run."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from benchmarks.sequences import __doc__ as description
from benchmarks.sequences.report import report
from benchmarks.sequences.runs import (
    TRIED,
    best_epoch,
    is_kept,
    place_of,
    run_baseline,
    run_network,
    run_refit,
    save,
)
from benchmarks.sequences.study import Study, read_study, study_names


def main(argv: Sequence[str]) -> None:
    """Do what the command says."""
    options = parse(argv)
    if options.command == "report":
        report()
    elif options.command == "try":
        try_variants(read_study(options.study), options)
    else:
        run_variants(read_study(options.study), options)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sequences",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and test the variants of a study")
    run.add_argument("--baselines", nargs="*", help="by default all; tuned on validation")
    tried = commands.add_parser("try", help="train what was tried; the test is not read")
    for one in (run, tried):
        one.add_argument("study", choices=sorted(study_names()))
        one.add_argument("--folder", required=True, help="where the data lies")
        one.add_argument("--variants", nargs="*", help="by default all")
        one.add_argument("--seeds", type=int, nargs="+", default=[1])
    commands.add_parser("report", help="make tables and pictures of all runs that are there")
    return parser.parse_args(argv)


def run_variants(study: Study, options: argparse.Namespace) -> None:
    """Make the runs that are asked for and are not there, and test them."""
    folder = options.folder
    for name in study.baselines if options.baselines is None else options.baselines:
        place = place_of(study, name, 0)
        if not is_kept(place):
            recipe = study.recipe(next(iter(study.variants)), 0, folder)
            save(run_baseline(name, recipe), place)
    for seed, name in chosen(options, (*study.variants, *study.refits)):
        place = place_of(study, name, seed)
        if is_kept(place):
            continue
        if variant := study.refits.get(name):
            n_epochs = best_epoch(study, variant)
            save(run_refit(study.recipe(variant, seed, folder), n_epochs), place)
        else:
            save(run_network(study.recipe(name, seed, folder), with_test=True), place)


def try_variants(study: Study, options: argparse.Namespace) -> None:
    """Make the runs that are asked for and are not there, and leave the test alone."""
    for seed, variant in chosen(options, study.tried):
        place = place_of(study, f"{TRIED}/{variant}", seed)
        if not is_kept(place):
            recipe = study.tried_recipe(variant, seed, options.folder)
            save(run_network(recipe, with_test=False), place)


def chosen(options: argparse.Namespace, names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Return every seed with every variant that is asked for."""
    return product(options.seeds, names if options.variants is None else options.variants)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"benchmarks.sequences: {error}")
