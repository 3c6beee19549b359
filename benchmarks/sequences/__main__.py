"""Runs a study, or reports on what was run."""

import argparse
import logging
import sys
from collections.abc import Sequence

import yaml

from benchmarks.sequences import __doc__ as description
from benchmarks.sequences.report import report
from benchmarks.sequences.runs import RUNS, run_baseline, run_network, save
from benchmarks.sequences.study import Study, read_study, study_names

logger = logging.getLogger("ftmamba.study")


def main(argv: Sequence[str]) -> None:
    """Do what the command says."""
    options = parse(argv)
    if options.command == "report":
        report()
    else:
        run_study(read_study(options.study), options)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sequences",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and test the variants of a study")
    run.add_argument("study", choices=sorted(study_names()))
    run.add_argument("--folder", required=True, help="where the data lies")
    run.add_argument("--variants", nargs="+", help="by default all")
    run.add_argument("--baselines", nargs="*", help="by default all; tuned on validation")
    run.add_argument("--seeds", type=int, nargs="+", default=[1])
    run.add_argument(
        "--validation_only", action="store_true", help="do not read the test: to choose by"
    )
    run.add_argument("--replace", default="{}", help="YAML of values that replace a variant's")
    run.add_argument("--suffix", default="", help="of the variants' names in the runs' folder")
    commands.add_parser("report", help="make tables and pictures of all runs that are there")
    return parser.parse_args(argv)


def run_study(study: Study, options: argparse.Namespace) -> None:
    """Make the runs that are asked for and are not there."""
    extra = yaml.safe_load(options.replace)
    for name in study.baselines if options.baselines is None else options.baselines:
        if not kept(study, name, 0):
            recipe = study.recipe(next(iter(study.variants)), 0, options.folder, {})
            save(run_baseline(name, recipe), study, name, 0)
    for seed in options.seeds:
        for variant in options.variants or study.variants:
            label = f"{variant}{options.suffix}"
            if kept(study, label, seed):
                continue
            recipe = study.recipe(variant, seed, options.folder, extra)
            run = run_network(recipe, validation_only=options.validation_only)
            save(run, study, label, seed)
            logger.info("%s, seed %d: validation %.4f", label, seed, run.facts["validation"])


def kept(study: Study, name: str, seed: int) -> bool:
    """Return whether a run is there."""
    return (RUNS / study.name / name / f"{seed}.json").is_file()


if __name__ == "__main__":
    main(sys.argv[1:])
