"""The stages of a run, from the recipe to a trained model."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    ProjectConfiguration,
    broadcast_object_list,
    parse_flag_from_env,
    set_seed,
)
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.atomic import finish_swap, locked
from ftmamba.checkpoint import REPLACED_FILES, check_nothing_lost
from ftmamba.data.encoded import EncodedData, encode
from ftmamba.data.histories import Histories, histories_of
from ftmamba.data.named_datasets import NAMED_DATASETS
from ftmamba.data.schema import Schema
from ftmamba.data.tables import Tables, load_tables
from ftmamba.evaluation import EmbeddingScorer, Protocol, Split, evaluate, make_split
from ftmamba.evaluation.baselines import sampled_users
from ftmamba.evaluation.blending import Asked
from ftmamba.evaluation.metrics import METRICS
from ftmamba.identity import Identity, identity_of
from ftmamba.recipe import DataRecipe, EvaluationRecipe, Recipe, TrainingRecipe, load_preset
from ftmamba.training.checkpoints import (
    CHECKPOINTS,
    REFIT,
    CheckpointStore,
    OnCheckpoint,
    check_output_dir,
    check_same_run,
    read_extractor,
    set_aside,
)
from ftmamba.training.embedding import catalogue_embeddings, longest_history, user_embeddings
from ftmamba.training.loop import FitResult, fit
from modeling_ftmamba.configuration_ftmamba import Column, FTMambaConfig, near
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel
from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor

logger = logging.getLogger(__name__)


REFIT_RATE = 0.5
"""Of the learning rate, where training goes on with the validation part. On MovieLens-100K, each
user's last but one film predicted by a model of twenty epochs: .132 without, four epochs at a
quarter, a half and the whole of the rate .138, .140 and .139, two or eight at a half .136 and .139.
"""


@dataclass(frozen=True)
class Trained:
    """A trained model with the data it was trained on.

    Attributes:
        model: with the weights that validation picked, or those of the refit.
        data: the tables as the model reads them.
        result: epochs, scores and losses of the training that was validated.
        seconds: wall time of training, the refit included.
        identity: of the run.
        asked: users of validation as scored by the model before a refit; None without a blend.
    """

    model: FTMambaTwoTowerModel
    data: EncodedData
    result: FitResult
    seconds: float
    identity: Identity = field(default_factory=dict)
    asked: Asked | None = None


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Start Accelerate as the recipe says, with its tracker if it asks for one.

    Raises:
        ValueError: several processes were launched that Accelerate does not join.
    """
    training = recipe.training
    # A process may train several recipes, one after the other, each in its own precision.
    AcceleratorState._reset_state()  # noqa: SLF001 - there is no public way
    accelerator = Accelerator(
        cpu=start_processes().device.type == "cpu",
        mixed_precision=training.mixed_precision,
        log_with=training.report_to if training.with_tracking else None,
        project_config=ProjectConfiguration(recipe.output_dir, f"{recipe.output_dir}/logs"),
    )
    check_processes(accelerator)
    if training.with_tracking:
        accelerator.init_trackers("ftmamba", config=_flat(recipe.to_dict()))
    return accelerator


def start_processes() -> PartialState:
    """Join the launched processes, before a recipe is known; the main one shows the log."""
    # Without `cpu=True` and without a GPU, Accelerate takes each launched process for the only one.
    on_cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    processes = PartialState(cpu=on_cpu)
    logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    level = logging.INFO if processes.is_main_process else logging.WARNING
    logging.getLogger("ftmamba").setLevel(level)
    return processes


def check_processes(accelerator: Accelerator) -> None:
    """Raise ValueError where launched processes would each train a model of their own."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched but Accelerate joins {accelerator.num_processes}; "
            "launch with one of the files in configuration/accelerate"
        )


def read_tables(
    recipe: DataRecipe, schema: Mapping[str, Any] | None, processes: Accelerator | PartialState
) -> Tables:
    """Read the tables that a recipe names; what must be downloaded, one process downloads.

    Raises:
        ValueError: an unknown data set, or tables that do not pass their checks.
        FileNotFoundError: a file is missing.
    """
    parsed = None if schema is None else Schema.from_dict(schema)
    threshold = recipe.positive_threshold
    if recipe.name and recipe.name not in NAMED_DATASETS:
        raise ValueError(
            f"data.name must be one of {', '.join(NAMED_DATASETS)}, got {recipe.name!r}"
            f"{near(recipe.name, NAMED_DATASETS)}"
        )
    with processes.local_main_process_first():
        if recipe.name:
            read, folders = NAMED_DATASETS[recipe.name], (recipe.folder, recipe.cache_dir)
            where = (folder or None for folder in folders)
            return read(*where, schema=parsed, positive_threshold=threshold)
        return load_tables(
            recipe.users, recipe.items, recipe.interactions, parsed,
            drop_unknown=recipe.drop_unknown, positive_threshold=threshold,
        )  # fmt: skip


def split_tables(tables: Tables, recipe: Recipe) -> Split:
    """Divide the interactions as the recipe says."""
    splitter = make_split(recipe.split.kind, recipe.split.options(recipe.seed))
    return splitter.split(tables.interactions)


@contextmanager
def folder_of_run(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold a run's folder, so that no other run writes there, once saving there cannot fail.

    A save that a kill has cut short is finished first.

    Raises:
        ValueError: another run holds it, or saving would replace files of another kind.
        OSError: it cannot be written to.
    """
    folder, problem = folder.expanduser().resolve(), [""]
    with ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                stack.enter_context(locked(folder))
                finish_swap(folder, owned=REPLACED_FILES)
                check_nothing_lost(folder)
                folder.mkdir(exist_ok=True)
            except (ValueError, OSError) as error:
                problem = [f"output_dir: {error}"]
        if message := broadcast_object_list(problem)[0]:
            raise ValueError(message)
        yield


def check_before_training(recipe: Recipe, tables: Tables) -> None:
    """Raise ValueError for a metric or an example that the tables and the recipe do not have."""
    plan, examples = recipe.evaluation, recipe.examples
    metrics = [f"{name}@{k}" for k in plan.k for name in METRICS]
    if plan.selection_metric not in metrics:
        raise ValueError(
            f"selection_metric {plan.selection_metric!r} is not evaluated"
            f"{near(plan.selection_metric, metrics)}; there are: {', '.join(metrics)}"
        )
    if max(plan.k) > tables.items.num_rows:
        raise ValueError(
            f"k={max(plan.k)} is larger than the catalogue of {tables.items.num_rows} items; give "
            "a smaller k"
        )
    if examples.user_key:
        tables.user_row(examples.user_key)
    columns = [column.name for column in tables.schema.users.columns]
    for name in examples.record:
        if name not in columns:
            raise ValueError(
                f"examples.record: the users have no column {name!r}{near(name, columns)}; they "
                f"have: {', '.join(columns)}"
            )
    if examples.history and tables.schema.users.history_column is None:
        raise ValueError(
            "examples.history needs a column of kind 'history' among the users' columns; add one, "
            "or leave examples.history out"
        )
    for key in examples.history:
        tables.item_row(key)


def train(
    recipe: Recipe,
    tables: Tables,
    split: Split,
    accelerator: Accelerator,
    *,
    on_checkpoint: OnCheckpoint | None = None,
) -> Trained:
    """Train on the training part; validation picks the epoch.

    With `evaluation.refit` the model is then trained on training and validation, as `refit` says;
    the test part is never looked at. `on_checkpoint` is called after each training checkpoint.
    """
    start = time.perf_counter()
    identity = identity_of(recipe, tables, n_processes=accelerator.num_processes)
    training, extractor = begin(recipe, identity, accelerator, tables=tables)
    if recipe.evaluation.refit and not training.checkpointing_steps:
        # Else what a refit needs of it would be lost with the process.
        training = replace(training, checkpointing_steps="end")
    data = encode_once(recipe, tables, split, accelerator, extractor=extractor)
    model = make_model(recipe, data)
    logger.info(
        "%s: %d training interactions, %d users, %d items, %d parameters",
        recipe.model.preset, len(split.train), data.n_users, data.n_items, model.num_parameters(),
    )  # fmt: skip
    result = fit(
        model,
        data,
        training,
        accelerator,
        validate=make_validation(data, split, recipe.evaluation),
        output_dir=Path(recipe.output_dir),
        seed=recipe.seed,
        identity=identity,
        on_checkpoint=on_checkpoint,
    )
    asked = None
    if recipe.blend == "auto" and len(split.validation):
        asked = ask_validation(model, data, split, recipe.seed)
    if recipe.evaluation.refit:
        share, n_epochs = recipe.evaluation.refit_share, result.best_epoch
        begun = None if share is None else (model, data)
        identity = {**identity, "refit": {"n_epochs": math.ceil(n_epochs * (share or 1))}}
        model, data = refit(recipe, tables, split, accelerator, identity=identity, begun=begun)
    return Trained(model, data, result, round(time.perf_counter() - start, 3), identity, asked)


def begin(
    recipe: Recipe,
    identity: Identity,
    accelerator: Accelerator,
    *,
    tables: Tables | None = None,
) -> tuple[TrainingRecipe, FTMambaFeatureExtractor | None]:
    """Find what the run resumes from, and see that its folder holds no other run.

    Args:
        recipe: of the run.
        identity: of the run.
        accelerator: of its processes.
        tables: what it reads; None where the recipe's run has been compared with them.

    Returns:
        The options of training, which resume only where there is something to resume, and the
        extractor to encode with, if it is not to be fitted.

    Raises:
        ValueError: another run is in the folder, or was to be resumed.
    """
    training, output_dir = recipe.training, Path(recipe.output_dir)
    wanted, problem = training.resume_from_checkpoint, ""
    resumed = CheckpointStore(output_dir / CHECKPOINTS).find(wanted) if wanted else None
    if resumed is not None:
        try:
            check_same_run(resumed, identity, allowed=training.allow_changed, tables=tables)
        except ValueError as error:
            if not (recipe.overwrite_output_dir and wanted == "latest"):
                raise
            problem, resumed = str(error), None
    if resumed is None or resumed.resolve().parents[1] != output_dir.resolve():
        problem = problem or check_output_dir(output_dir, identity)
    if problem and not recipe.overwrite_output_dir:
        raise ValueError(
            f"output_dir {recipe.output_dir!r} holds another run: {problem}. Give another "
            "output_dir, or --overwrite_output_dir to replace its checkpoint"
        )
    # Every process has looked before one changes the folder.
    accelerator.wait_for_everyone()
    if problem and accelerator.is_main_process:
        set_aside(output_dir)
    accelerator.wait_for_everyone()
    if resumed is None:
        if wanted:
            logger.info("no checkpoint of this run in %s yet; starting afresh", output_dir)
        return replace(training, resume_from_checkpoint="", allow_changed=()), None
    training = replace(training, resume_from_checkpoint=str(resumed))
    return training, read_extractor(resumed, identity)


def ask_validation(
    model: FTMambaTwoTowerModel, data: EncodedData, split: Split, seed: int
) -> Asked:
    """Embed the users of validation by whom a blend is chosen, with and without histories."""
    user_ids, as_of = sampled_users(split.validation, seed), split.validation_time

    def scorer(histories: Histories | None) -> EmbeddingScorer:
        return embedding_scorer(model, data, as_of, user_ids=user_ids, histories=histories)

    if data.histories is None:
        return Asked(user_ids, scorer(None), None)
    none = histories_of(split.train.select(np.zeros(0, np.int64)))
    return Asked(user_ids, scorer(data.histories), scorer(none))


def refit(
    recipe: Recipe,
    tables: Tables,
    split: Split,
    accelerator: Accelerator,
    *,
    identity: Identity,
    begun: tuple[FTMambaTwoTowerModel, EncodedData] | None = None,
) -> tuple[FTMambaTwoTowerModel, EncodedData]:
    """Train on training and validation.

    Args:
        recipe: of the run.
        tables: that it read.
        split: of their interactions.
        accelerator: of its processes.
        identity: of the run, with the number of epochs.
        begun: a trained model and its data, from which training goes on at `REFIT_RATE` of the
            recipe's learning rate; None trains afresh, on the schedule of the first training.
    """
    n_epochs, resumed = identity["refit"]["n_epochs"], recipe.training.resume_from_checkpoint
    merged = replace(split, train=split.before_test, validation_time=split.test_time)
    schedule: dict[str, Any] = {"stop_after_epochs": n_epochs}
    if begun is None:
        logger.info("training again on train + validation for %d epochs", n_epochs)
        data = encode_once(recipe, tables, merged, accelerator)
        model = make_model(recipe, data)
    else:
        logger.info("training goes on, on train + validation, for %d epochs", n_epochs)
        model, extractor = begun[0], begun[1].extractor
        data = encode_once(recipe, tables, merged, accelerator, extractor=extractor)
        rate = REFIT_RATE * recipe.training.learning_rate
        schedule = {"num_epochs": n_epochs, "stop_after_epochs": 0, "learning_rate": rate}
    training = replace(
        recipe.training,
        resume_from_checkpoint="latest" if resumed else "",
        allow_changed=(),
        **schedule,
    )
    # A refit of other data or for other epochs is begun again.
    folder = Path(recipe.output_dir) / REFIT
    own = replace(recipe, training=training, output_dir=str(folder), overwrite_output_dir=True)
    training, _ = begin(own, identity, accelerator)
    fit(
        model, data, training, accelerator,
        validate=None, output_dir=folder, seed=recipe.seed, identity=identity,
    )  # fmt: skip
    return model, data


def encode_once(
    recipe: Recipe,
    tables: Tables,
    split: Split,
    accelerator: Accelerator,
    *,
    extractor: FTMambaFeatureExtractor | None = None,
) -> EncodedData:
    """Encode the tables on the first process of each machine; the others read its cache."""
    with accelerator.local_main_process_first():
        return encode(
            tables,
            split.train.by_time() if recipe.training.batch_order == "time" else split.train,
            as_of=split.validation_time,
            cache_dir=recipe.data.cache_dir or None,
            extractor=extractor,
        )


def make_model(recipe: Recipe, data: EncodedData) -> FTMambaTwoTowerModel:
    """Build the model of the recipe's preset for the columns of the data, weights seeded.

    Raises:
        ValueError: a field of the model that cannot be.
    """
    fields = {**load_preset(recipe.model.preset), **recipe.model.overrides}
    try:
        config = FTMambaConfig.from_columns(
            data.extractor.user_columns, data.extractor.item_columns, **fields
        )
    except StrictDataclassError as error:
        raise ValueError(f"model: {error.__cause__ or error}") from error
    set_seed(recipe.seed)
    return FTMambaTwoTowerModel(config)


def make_protocol(recipe: EvaluationRecipe) -> Protocol:
    """Return the protocol of validation and test, the same for every model of a run."""
    return Protocol(k=recipe.k, mask_seen=recipe.mask_seen is not False)


def make_validation(
    data: EncodedData, split: Split, recipe: EvaluationRecipe
) -> Callable[[FTMambaTwoTowerModel], float] | None:
    """Return the function that scores a model on validation; None where there is none."""
    if not len(split.validation):
        return None
    protocol = make_protocol(recipe)

    def validate(model: FTMambaTwoTowerModel) -> float:
        user_ids = np.unique(split.validation.user_ids)
        scorer = embedding_scorer(
            model, data, split.validation_time, user_ids=user_ids, histories=data.histories
        )
        evaluation = evaluate(scorer, test=split.validation, seen=split.train, protocol=protocol)
        return evaluation.mean(recipe.selection_metric)

    return validate


def embedding_scorer(
    model: FTMambaTwoTowerModel,
    data: EncodedData,
    as_of: int | None,
    *,
    user_ids: NDArray[np.int64],
    histories: Histories | None = None,
) -> EmbeddingScorer:
    """Embed some users and, as of a time, every item.

    Args:
        model: the trained model.
        data: the tables as the model reads them.
        as_of: UTC seconds of the items' popularity; None takes the end of training.
        user_ids: rows of the users; the scores of others are NaN, which the evaluation refuses.
        histories: of the users up to then; read where the model has a history.
    """
    rows = torch.from_numpy(user_ids)
    items = catalogue_embeddings(model, data, as_of)
    embedded = user_embeddings(model, data, rows, items, histories)
    users = embedded.new_full((data.n_users, embedded.shape[1]), torch.nan)
    users[rows] = embedded
    return scorer_of(model, users, items, histories, data.history_column)


def scorer_of(
    model: FTMambaTwoTowerModel,
    users: Tensor,
    items: Tensor,
    histories: Histories | None,
    column: Column | None,
) -> EmbeddingScorer:
    """Return the scorer of a model's embeddings.

    Args:
        model: of the embeddings.
        users: (U, D), every row of the table of users.
        items: (I, D), every row of the table of items.
        histories: which the model read; None for none.
        column: of the histories; None where the model has none.
    """
    temperature = float(model.temperature.detach())
    if model.repeat_bias is None or histories is None or column is None:
        return EmbeddingScorer(users, items, temperature)
    seen = histories.newest_items(longest_history(column, histories))
    bias = float(model.repeat_bias.detach())
    return EmbeddingScorer(users, items, temperature, seen=seen, repeat_bias=bias)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Return nested values under dotted names, all of types that every tracker takes."""
    flat: dict[str, int | float | str | bool] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str) else str(value)
    return flat
