"""The model beside every baseline, under one protocol, on the test part: read once, here."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from accelerate import Accelerator

from ftmamba.data.tables import Tables
from ftmamba.evaluation import Evaluation, Split, evaluate, make_baseline, paired_test, tune
from ftmamba.evaluation.protocol import Scorer
from ftmamba.evaluation.result import PairedComparison
from ftmamba.evaluation.tuning import GRIDS
from ftmamba.experiment.rivals import held_out_scorer, parse_rivals, rival_recipe, train_rival
from ftmamba.recipe import Recipe
from ftmamba.training.run import Trained, make_protocol

logger = logging.getLogger(__name__)

NAMES = {"mamba": "FT-Mamba", "ssd": "FT-Mamba-2", "attention": "FT-Transformer"}


@dataclass(frozen=True)
class Comparison:
    """Evaluations by model, the recipe's own first.

    Attributes:
        evaluations: model -> its evaluation on the test part.
        metric: which metric picked epochs and options, and is tested.
        options: baseline -> the options that validation chose.
        seconds: model -> wall time of fitting, choosing and scoring.
    """

    evaluations: Mapping[str, Evaluation]
    metric: str
    options: Mapping[str, str]
    seconds: Mapping[str, float]

    @property
    def own(self) -> str:
        """Name of the recipe's own model."""
        return next(iter(self.evaluations))

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        own = self.evaluations[self.own]
        return own.protocol.describe(own.n_items)

    def paired(self) -> dict[str, PairedComparison]:
        """Test the recipe's own model against each other model, user by user."""
        own, *others = self.evaluations
        return {
            other: paired_test(self.evaluations[own], self.evaluations[other], self.metric)
            for other in others
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "models": {name: one.to_dict() for name, one in self.evaluations.items()},
            "metric": self.metric,
            "differences": {name: asdict(one) for name, one in self.paired().items()},
            "options": dict(self.options),
            "seconds": dict(self.seconds),
        }


def compare(
    recipe: Recipe, tables: Tables, split: Split, trained: Trained, accelerator: Accelerator
) -> Comparison:
    """Evaluate the trained model, then every baseline and rival of the recipe.

    A baseline is fitted on train + validation with the options that were best on validation; a
    rival is trained by the same loop as the model, its epoch picked by validation. Processes other
    than the main one train the rivals along and leave the baselines out.
    """
    protocol = make_protocol(recipe.evaluation)
    seen = split.before_test
    evaluations: dict[str, Evaluation] = {}
    options: dict[str, str] = {}
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    for name, scorer, chosen in _scorers(recipe, tables, split, trained, accelerator):
        evaluations[name] = evaluate(scorer, test=split.test, seen=seen, protocol=protocol)
        if chosen:
            options[name] = chosen
        seconds[name] = round(time.perf_counter() - start, 3)
        start = time.perf_counter()
    return Comparison(evaluations, recipe.evaluation.selection_metric, options, seconds)


def check_rivals_and_baselines(recipe: Recipe) -> None:
    """Raise ValueError for what `compare` could not make, before anything is trained."""
    for rival in parse_rivals(recipe.evaluation.rivals):
        rival_recipe(rival, recipe)
    options = recipe.evaluation.baseline_options
    for name in (*recipe.evaluation.baselines, *options):
        make_baseline(name, options.get(name))


def own_name(trained: Trained) -> str:
    """Return what the recipe's own model is called in tables."""
    config = trained.model.config
    return NAMES[config.mixer] if config.num_hidden_layers else "MLP"


def _scorers(
    recipe: Recipe, tables: Tables, split: Split, trained: Trained, accelerator: Accelerator
) -> Iterator[tuple[str, Scorer, str]]:
    """Yield each model's name, fitted scorer and, if it was tuned, what was chosen."""
    yield own_name(trained), held_out_scorer(trained, split), ""
    for rival in parse_rivals(recipe.evaluation.rivals):
        yield rival.name, train_rival(rival, recipe, tables, split, accelerator), ""
    if not accelerator.is_main_process:
        # Rivals need every process; a baseline is fitted once.
        return
    for name in recipe.evaluation.baselines:
        options = recipe.evaluation.baseline_options.get(name)
        baseline, chosen = make_baseline(name, options), ""
        if name in GRIDS and recipe.evaluation.tune_baselines and len(split.validation):
            logger.info("baseline: %s, tuned on validation", name)
            metric = recipe.evaluation.selection_metric
            protocol = make_protocol(recipe.evaluation)
            baseline = tune(GRIDS[name], split, protocol=protocol, metric=metric).best
            chosen = str(baseline)
        else:
            logger.info("baseline: %s", name)
        yield baseline.name, baseline.fit(split.before_test, as_of=split.test_time), chosen
