"""A recipe's model beside rivals and baselines, under one protocol, on the test part.

The test part is read here and nowhere else. Shapes: U test users.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from subprocess import DEVNULL, PIPE, Popen
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.data.histories import histories_of
from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables
from ftmamba.evaluation import (
    EmbeddingScorer,
    Evaluation,
    Split,
    evaluate,
    make_baseline,
    paired_test,
    tune,
)
from ftmamba.evaluation.baselines import (
    GRIDS,
    IN_ORDER,
    IN_TIME,
    MOST_SECONDS,
    Baseline,
    Tuned,
    tuning_seconds,
)  # fmt: skip
from ftmamba.evaluation.blending import Asked, BlendedScorer, Blending, choose_blend
from ftmamba.evaluation.protocol import Scorer
from ftmamba.evaluation.result import PairedComparison
from ftmamba.identity import identity_of
from ftmamba.recipe import (
    EvaluationRecipe,
    ModelRecipe,
    Recipe,
    TrainingRecipe,
    build,
    lay_over,
    load_preset,
    recipe_from_dict,
    to_plain,
)
from ftmamba.training.checkpoints import RIVALS
from ftmamba.training.run import (
    Trained,
    begin,
    embedding_scorer,
    make_protocol,
    read_tables,
    split_tables,
    train,
)
from modeling_ftmamba.catalogue import Blend
from modeling_ftmamba.configuration_ftmamba import Column, FTMambaConfig, near

logger = logging.getLogger(__name__)

WITH_COUNTS = " + counts"
"""Ends the name of a model whose score is blended."""

N_BLENDED = 3
"""Counting models of each kind that a blend is tried with."""

COLLAPSED = 0.98
"""Mean cosine of the items from which on their embeddings count as one."""

NAMES = {"mamba": "FT-Mamba", "ssd": "FT-Mamba-2", "attention": "FT-Transformer"}
RIVAL_COLUMNS = ("all", "ids")

LEAST_USERS = 5
"""Smaller groups are put together: their figures mean little, and could point at a person."""

MOST_GROUPS, N_BANDS, N_RESAMPLES = 12, 4, 2_000
OTHERS, MISSING = "all others", "(missing)"


@dataclass(frozen=True)
class Comparison:
    """Evaluations by model, the recipe's own first: blended, if it has a blend, then pure.

    Attributes:
        evaluations: model -> its evaluation on the test part.
        metric: which metric picked epochs and options, and is tested.
        options: baseline -> the options that validation chose.
        seconds: model -> wall time of fitting, choosing and scoring.
        blending: what validation chose for the blend; None where the recipe asks for none.
        blend: the same, counted on train + validation, for the catalogue; None where the towers
            are served alone, also because nothing that is counted helps them.
    """

    evaluations: Mapping[str, Evaluation]
    metric: str
    options: Mapping[str, str]
    seconds: Mapping[str, float]
    blending: Blending | None = None
    blend: Blend | None = None

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        own = next(iter(self.evaluations.values()))
        return own.protocol.describe(own.n_items)

    def paired(self, own: str = "") -> dict[str, PairedComparison]:
        """Test a model, by default the served one, against each other model, user by user."""
        own = own or next(iter(self.evaluations))
        return {
            other: paired_test(self.evaluations[own], evaluation, self.metric)
            for other, evaluation in self.evaluations.items()
            if other != own
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "models": {name: one.to_dict() for name, one in self.evaluations.items()},
            "metric": self.metric,
            "differences": {name: asdict(one) for name, one in self.paired().items()},
            "options": dict(self.options),
            "seconds": dict(self.seconds),
            "blend": None if self.blending is None else self.blending.to_dict(),
            "differences_pure": {
                name: asdict(one)
                for pure in list(self.evaluations)[1:2]
                if self.blend is not None
                for name, one in self.paired(pure).items()
            },
        }


def compare(
    recipe: Recipe,
    tables: Tables,
    split: Split,
    trained: Trained,
    accelerator: Accelerator,
    *,
    beside: Popen[bytes] | None = None,
) -> Comparison:
    """Evaluate the trained model, then every rival and baseline of the recipe.

    A baseline is fitted on train + validation with the options that were best on validation; a
    rival is trained by the same loop as the model, its epoch picked by validation. Processes other
    than the main one train the rivals too and leave the baselines out. What a process `beside`
    has trained of the rivals is not trained again.
    """
    protocol = make_protocol(recipe.evaluation)
    evaluations: dict[str, Evaluation] = {}
    options: dict[str, str] = {}
    seconds: dict[str, float] = {}
    tuning = _Tuning(recipe.evaluation, split)
    blending = blend = None
    baselines: list[str] = []
    config = trained.model.config
    own = NAMES[config.mixer] if config.num_hidden_layers else "MLP"
    start = time.perf_counter()

    def add(name: str, scorer: Scorer, chosen: str = "") -> None:
        nonlocal start
        evaluations[name] = evaluate(
            scorer, test=split.test, seen=split.before_test, protocol=protocol
        )
        if chosen:
            options[name] = chosen
        seconds[name] = round(time.perf_counter() - start, 3)
        start = time.perf_counter()

    towers = held_out_scorer(trained, split)
    if trained.asked is not None and accelerator.is_main_process:
        blending = tuning.blend(trained.asked)
    if blending is not None and not blending.is_pure:
        blend = blending.count(split.before_test, split.test_time)
        reads_history = trained.data.histories is not None
        histories = histories_of(split.before_test).items if reads_history else None
        add(f"{own}{WITH_COUNTS}", BlendedScorer(towers, blend, histories), str(blending))
    add(own, towers)
    # Rivals need every process; a baseline is fitted once.
    if accelerator.is_main_process:
        for name in tuning.possible(recipe.evaluation.baselines):
            baseline, chosen = tuning.baseline(name)
            add(baseline.name, baseline.fit(split.before_test, as_of=split.test_time), chosen)
            baselines.append(baseline.name)
            logger.info("baseline: %s, %.1f s", chosen or baseline.name, seconds[baseline.name])
    if beside is not None:
        logger.info("rivals: waiting for the process that trains them")
        beside.wait()
    for rival in parse_rivals(recipe.evaluation.rivals):
        logger.info("rival: %s", rival.name)
        rival_trained = train_rival(
            rival, recipe, tables, split, accelerator, resumes=beside is not None
        )
        add(rival.name, held_out_scorer(rival_trained, split))
        seconds[rival.name] = round(sum(one["seconds"] for one in rival_trained.result.history), 3)
    evaluations = {
        name: evaluations[name] for name in sorted(evaluations, key=lambda name: name in baselines)
    }
    if accelerator.is_main_process:
        lists = distinct_lists(next(iter(evaluations.values())))
        logger.info("recommendations: %s", lists)
        for concern in concerns(evaluations, baselines, towers.items, tuning.plan.selection_metric):
            logger.warning("WARNING: %s", concern)
    metric = recipe.evaluation.selection_metric
    return Comparison(evaluations, metric, options, seconds, blending, blend)


def distinct_lists(evaluation: Evaluation) -> str:
    """Say how many lists differ, and how many items they cover."""
    n_distinct = len(np.unique(evaluation.recommended, axis=0))
    n_covered = round(evaluation.coverage(evaluation.protocol.k[-1]) * evaluation.n_items)
    return (
        f"{n_distinct:,} different lists for {len(evaluation):,} users, of {n_covered:,} of the "
        f"{evaluation.n_items:,} items"
    )


def concerns(
    evaluations: Mapping[str, Evaluation],
    baselines: Sequence[str],
    items_ID: Tensor,
    metric: str,
) -> list[str]:
    """Return what is wrong with the served model, the first of all, and a remedy of each."""
    own, *_ = evaluations
    served, found = evaluations[own], []
    means = {name: evaluations[name].mean(metric) for name in (own, *baselines)}
    figures = {name: f"{name} ({metric} {mean:.4f})" for name, mean in means.items()}
    popular = [name for name in baselines if name.startswith("popularity")]
    others = [name for name in baselines if name not in popular]
    below = max(popular, key=means.__getitem__, default=own)
    if means[below] > means[own]:
        found.append(
            f"{figures[own]} is below {figures[below]}: it has learned little about single users; "
            "train longer (training.num_epochs), give users a history, or set blend: auto"
        )
    best = max(others, key=means.__getitem__, default=own)
    if means[best] > means[own]:
        found.append(
            f"{figures[own]} is behind the counting model {figures[best]}: train longer, set "
            "blend: auto, or serve the counting model"
        )
    if len(served) > 1 and len(np.unique(served.recommended, axis=0)) == 1:
        found.append(
            "all users get the same list: nothing that the model reads of them tells them apart; "
            "add a history or more columns of users"
        )
    unit_ID = torch.nn.functional.normalize(items_ID.double(), dim=1)
    n_items = len(unit_ID)
    cosine = float((unit_ID.sum(0).square().sum() - n_items) / max(1, n_items * (n_items - 1)))
    if n_items > 1 and cosine > COLLAPSED:
        found.append(
            f"the embeddings of the items have collapsed (their mean cosine is {cosine:.3f}), so "
            "similar items mean nothing; add the item's key as a column, or lower "
            "training.learning_rate"
        )
    return found


@dataclass(frozen=True)
class _Tuning:
    """The baselines of a recipe with the options that validation chose, each tuned once."""

    plan: EvaluationRecipe
    split: Split
    tuned: dict[str, Tuned] = field(default_factory=dict)

    def possible(self, names: Sequence[str]) -> list[str]:
        """Return the baselines for which the interactions have what they read."""
        has_times, is_ordered = self.split.train.times is not None, self.split.train.is_ordered
        possible = []
        for name in names:
            if (name in IN_TIME and not has_times) or (name in IN_ORDER and not is_ordered):
                lacking = "times" if name in IN_TIME else "order"
                logger.warning("baseline: %s left out, the interactions have no %s", name, lacking)
            else:
                possible.append(name)
        return possible

    def baseline(self, name: str) -> tuple[Baseline, str]:
        """Return a baseline, and its options in words if they were chosen."""
        if name not in GRIDS or not self.plan.tune_baselines or not len(self.split.validation):
            return make_baseline(name, self.plan.baseline_options.get(name)), ""
        if name not in self.tuned:
            seconds = tuning_seconds(name, self.split.train)
            cost = f", about {seconds / 60:.0f} min" if seconds > MOST_SECONDS else ""
            logger.info("baseline: %s is tuned on validation%s", name, cost)
        best = self.tune(name).best
        return best, str(best)

    def tune(self, name: str) -> Tuned:
        if name not in self.tuned:
            protocol, metric = make_protocol(self.plan), self.plan.selection_metric
            self.tuned[name] = tune(GRIDS[name], self.split, protocol=protocol, metric=metric)
        return self.tuned[name]

    def blend(self, asked: Asked) -> Blending:
        """Choose the blend among the counting models that do best alone."""
        train = self.split.train
        names = ["pctm"] if train.is_ordered else ["item-knn"]
        if not train.is_ordered and tuning_seconds("ease", train) <= MOST_SECONDS:
            names.append("ease")
        candidates = [one for name in names for one in self.tune(name).ranked[:N_BLENDED]]
        blending = choose_blend(
            asked,
            self.split,
            candidates,
            mask_seen=make_protocol(self.plan).mask_seen,
            metric=self.plan.selection_metric,
        )
        logger.info("blend: %s", blending)
        return blending


def check_rivals_and_baselines(recipe: Recipe) -> None:
    """Raise ValueError for what `compare` could not make, before anything is trained."""
    for rival in parse_rivals(recipe.evaluation.rivals):
        rival_recipe(rival, recipe)
    plan = recipe.evaluation
    for name in plan.baselines:
        make_baseline(name, plan.baseline_options.get(name))
    if plan.tune_baselines and not GRIDS.keys() & plan.baselines:
        raise ValueError(
            f"tune_baselines is for {', '.join(GRIDS)}, and baselines has none of them; remove it"
        )
    if plan.tune_baselines and (both := sorted(GRIDS.keys() & plan.baseline_options)):
        raise ValueError(
            f"baseline_options {both} are not read with tune_baselines, which chooses them on "
            "validation; remove one of the two"
        )


def held_out_scorer(trained: Trained, split: Split) -> EmbeddingScorer:
    """Embed the users of the test part and, as of the test, every item."""
    user_ids = np.unique(split.test.user_ids)
    histories = None
    if trained.data.histories is not None:
        histories = histories_of(split.before_test)
    return embedding_scorer(
        trained.model, trained.data, split.test_time, user_ids=user_ids, histories=histories
    )


@dataclass(frozen=True)
class Rival:
    """Another network under the same recipe: the same data, split, loop, loss and budget.

    Attributes:
        name: its row in the table of results.
        preset: its architecture.
        overrides: fields that replace the preset's.
        training: options that replace the recipe's.
        columns: `all` of the recipe's, or only the `ids` of users and items.
    """

    name: str
    preset: str
    overrides: Mapping[str, Any]
    training: Mapping[str, Any]
    columns: str = "all"

    def __post_init__(self) -> None:
        if self.columns not in RIVAL_COLUMNS:
            raise ValueError(
                f"rival {self.name!r}: columns must be one of {', '.join(RIVAL_COLUMNS)}, "
                f"got {self.columns!r}{near(self.columns, RIVAL_COLUMNS)}"
            )


def parse_rivals(values: Mapping[str, Any]) -> list[Rival]:
    """Read the recipe's `evaluation.rivals`."""
    known = ("preset", "overrides", "training", "columns")
    rivals = []
    for name, options in values.items():
        for key in options:
            if key not in known:
                raise ValueError(
                    f"rival {name!r} has an unknown key {key!r}{near(key, known)}; "
                    f"it may have: {', '.join(known)}"
                )
        if "preset" not in options:
            raise ValueError(f"rival {name!r} needs a preset, e.g. preset: ft-transformer-small")
        rivals.append(Rival(name=name, **{"overrides": {}, "training": {}, **options}))
    return rivals


def train_rival(
    rival: Rival,
    recipe: Recipe,
    tables: Tables,
    split: Split,
    accelerator: Accelerator,
    *,
    resumes: bool = False,
) -> Trained:
    """Train a rival, or go on where another process has left it."""
    own = rival_recipe(rival, recipe, resumes=resumes)
    if rival.columns == "ids":
        tables = replace(tables, schema=ids_only(tables.schema))
    return train(own, tables, split, accelerator)


@contextmanager
def rivals_beside(
    recipe: Recipe, tables: Tables, accelerator: Accelerator
) -> Iterator[Popen[bytes] | None]:
    """Train the rivals in a second process with half of the threads, where a run has two or more.

    It reads the tables that the recipe names. If it fails the run trains its rivals itself.
    """
    n_threads = torch.get_num_threads()
    if n_threads < 2 or not recipe.evaluation.rivals:
        yield None
        return
    # States of another run are set aside before the second process writes beside them.
    begin(recipe, identity_of(recipe, tables), accelerator, tables=tables)
    code = "from ftmamba.comparison import train_rivals; train_rivals()"
    environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads // 2)}
    logger.info("rivals: trained beside the model, with %d threads", n_threads // 2)
    command = [sys.executable, "-c", code]
    with Popen(command, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, env=environment) as beside:
        assert beside.stdin is not None
        # It may have ended already, which `compare` finds out.
        with suppress(BrokenPipeError):
            beside.stdin.write(json.dumps(recipe.to_dict()).encode())
            beside.stdin.close()
        torch.set_num_threads(n_threads - n_threads // 2)
        try:
            yield beside
        finally:
            beside.terminate()
            torch.set_num_threads(n_threads)


def train_rivals() -> None:
    """Train the rivals of the recipe that comes as JSON; each leaves its state in the folder."""
    recipe = recipe_from_dict(json.load(sys.stdin))
    accelerator = Accelerator(cpu=True)
    tables = read_tables(recipe.data, recipe.schema, accelerator)
    split = split_tables(tables, recipe)
    for rival in parse_rivals(recipe.evaluation.rivals):
        train_rival(rival, recipe, tables, split, accelerator, resumes=True)


def rival_recipe(rival: Rival, recipe: Recipe, *, resumes: bool = False) -> Recipe:
    """Return the recipe with the rival's network and training options in place of its own."""
    config = FTMambaConfig(**{**load_preset(rival.preset), **rival.overrides})
    resume = "latest" if resumes or recipe.training.resume_from_checkpoint else ""
    afresh = {"resume_from_checkpoint": resume, "allow_changed": (), **rival.training}
    own = lay_over(TrainingRecipe, to_plain(recipe.training), afresh)
    training = build(TrainingRecipe, own, f"rivals.{rival.name}.training")
    if resumes and not training.checkpointing_steps:
        training = replace(training, checkpointing_steps="end")
    pooling = config.tower("user").pooling
    if training.sequences and pooling == "cls":
        raise ValueError(
            f"rival {rival.name!r}: training.sequences needs pooling 'last' or 'mean'; set "
            "pooling among its overrides, or sequences: '' in its training"
        )
    if rival.columns == "ids":
        # Its items have no popularity columns, and its users no history.
        loss = replace(training.loss, time_buckets=None, mask_history=False)
        training = replace(training, loss=loss)
    # Its states have a folder of their own, in which those of another rival may lie.
    return replace(
        recipe,
        model=ModelRecipe(rival.preset, dict(rival.overrides)),
        training=training,
        output_dir=f"{recipe.output_dir}/{RIVALS}/{quote(rival.name, safe=' ')}",
        overwrite_output_dir=True,
    )


def ids_only(schema: Schema) -> Schema:
    """Return the schema of a model that reads nothing of users and items but their keys."""
    users, items = (
        replace(table, columns=(Column(table.key, "categorical"),))
        for table in (schema.users, schema.items)
    )
    return replace(schema, users=users, items=items)


def group_figures(
    evaluations: Mapping[str, Evaluation], tables: Tables, *, columns: Sequence[str], metric: str
) -> dict[str, list[dict[str, Any]]]:
    """Return, for each column, its groups of test users with every model's mean and interval.

    A category is a group; numbers are cut into quarters of the test users; of a set, each member
    is a group, so that a user may be in several.
    """

    def figure(evaluation: Evaluation) -> dict[str, Any]:
        low, high = evaluation.interval(metric, n_resamples=N_RESAMPLES)
        return {"value": evaluation.mean(metric), "interval": [low, high]}

    own = next(iter(evaluations.values()))
    return {
        name: [
            {
                "group": group,
                "n_users": int(is_in_U.sum()),
                "models": {model: figure(one.of(is_in_U)) for model, one in evaluations.items()},
            }
            for group, is_in_U in groups_of_users(tables, name, own.user_ids)
        ]
        for name in columns
    }


def check_group_columns(columns: Sequence[str], tables: Tables) -> None:
    """Raise ValueError for a column that makes no groups, before anything is trained."""
    for name in columns:
        _group_column(tables, name)


def groups_of_users(
    tables: Tables, name: str, user_ids_U: NDArray[np.int64]
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return groups as masks (U,): the largest first, bands in order, small ones together last."""
    column = _group_column(tables, name)
    values = tables.users.column(name).take(pa.array(user_ids_U))
    if column.kind == "numeric":
        groups = list(_bands(values))
    else:
        sets = [_members(value, column) for value in values.to_pylist()]
        groups = [
            (member, np.array([member in each for each in sets], bool))
            for member in sorted(set().union(*sets))
        ]
        groups.sort(key=lambda group: -group[1].sum())
    large = [group for group in groups if group[1].sum() >= LEAST_USERS][:MOST_GROUPS]
    rest = ~np.logical_or.reduce([mask for _, mask in large] or [np.zeros(len(user_ids_U), bool)])
    if rest.sum() >= LEAST_USERS:
        large.append((OTHERS, rest))
    return large


def _group_column(tables: Tables, name: str) -> Column:
    known = {column.name: column for column in tables.schema.users.raw_columns}
    if name not in known:
        raise ValueError(
            f"user_groups: the users have no column {name!r}{near(name, known)}; "
            f"they have: {', '.join(known) or 'none'}"
        )
    if known[name].kind not in ("numeric", "categorical", "categories"):
        raise ValueError(
            f"user_groups: column {name!r} is of kind {known[name].kind!r}, which makes no groups; "
            "name a numeric or categorical column, or one of categories"
        )
    return known[name]


def _members(value: Any, column: Column) -> set[str]:
    if value is None or value == "":
        return {MISSING}
    if column.kind == "categorical":
        return {str(value)}
    parts = value.split(column.separator) if isinstance(value, str) else value
    return {str(part).strip() for part in parts} - {""} or {MISSING}


def _bands(values: pa.ChunkedArray) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield a group for each quarter of the numbers; equal numbers stay together.

    The outer bands are open: the least and the greatest number may be one person's.
    """
    numbers_U = pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy()
    known = numbers_U[~np.isnan(numbers_U)]
    if len(known) < len(numbers_U):
        yield MISSING, np.isnan(numbers_U)
    inner = np.linspace(0, 1, N_BANDS + 1)[1:-1]
    ends = np.unique(np.quantile(known, inner, method="higher")) if len(known) else known
    ends = ends[ends < known.max()] if len(known) else ends
    for start, end in pairwise([-np.inf, *ends, np.inf]):
        is_in_U = (numbers_U > start) & (numbers_U <= end)
        if not is_in_U.any():
            continue
        least = f"{numbers_U[is_in_U].min():g}"
        if np.isinf(start):
            name = "any number" if np.isinf(end) else f"up to {end:g}"
        else:
            name = f"{least} and over" if np.isinf(end) else f"{least} to {end:g}"
        yield name, is_in_U
