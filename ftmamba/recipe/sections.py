"""What a recipe holds: one frozen section for each stage of a run.

Each option carries its help text, and where it has them its choices and its least value; the
command line, the checks and `--help` are all made from these.
"""

# `option` is `dataclasses.field` with the facts that the command line needs.
# ruff: noqa: RUF009

import re
from dataclasses import dataclass
from typing import Any

from ftmamba.recipe.values import check_options, option, to_plain

HUB_STRATEGIES = ("end", "checkpoint", "every_save")


@dataclass(frozen=True)
class DataRecipe:
    """Where the three tables come from: a named data set, or three files."""

    name: str = option("", "a named data set, such as movielens-100k", main=True)
    folder: str = option("", "folder that already holds the named data set")
    users: str = option("", "table of users: CSV, Parquet, JSON lines or a Hub data set")
    items: str = option("", "table of items")
    interactions: str = option("", "table of interactions")
    drop_unknown: bool = option(False, "drop interactions whose user or item is in no table")
    positive_threshold: float | None = option(None, "keep interactions of at least this weight")
    cache_dir: str = option("", "folder for downloads and encoded tables; empty: ~/.cache/ftmamba")

    def __post_init__(self) -> None:
        check_options(self)

    def check_complete(self) -> None:
        """Raise ValueError unless exactly one source of tables is named in full."""
        files = {name: getattr(self, name) for name in ("users", "items", "interactions")}
        missing = [name for name, path in files.items() if not path]
        if self.name and len(missing) < len(files):
            raise ValueError(
                f"data names both the data set {self.name!r} and own tables; keep one of the two"
            )
        if not self.name and missing:
            raise ValueError(
                f"data lacks {', '.join(missing)}; give the three files users, items and "
                "interactions, or a named data set as data.name"
            )


@dataclass(frozen=True)
class SplitRecipe:
    """How interactions are divided; None leaves the split's own default."""

    kind: str = option(
        "global-time",
        "how interactions are divided into train, validation and test",
        main=True,
        choices=("random", "leave-last-out", "global-time"),
    )
    cut: float | None = option(None, "global-time: quantile of time at which the test begins")
    test_fraction: float | None = option(None, "fraction of the interactions tested")
    validation_fraction: float | None = option(None, "fraction of the interactions for validation")
    seed: int | None = option(None, "random: seed of the split; None: the seed of the run")

    def __post_init__(self) -> None:
        check_options(self)

    @staticmethod
    def kinds() -> tuple[str, ...]:
        """Return the names of the splits."""
        return tuple(SplitRecipe.__dataclass_fields__["kind"].metadata["choices"])

    def options(self, seed: int) -> dict[str, float | int]:
        """Return the options that were set; a random split takes the run's seed if it has none."""
        names = ("cut", "test_fraction", "validation_fraction", "seed")
        values = {name: getattr(self, name) for name in names}
        if self.kind == "random" and self.seed is None:
            values["seed"] = seed
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ModelRecipe:
    """Which network: a preset, and the configuration fields that replace its own."""

    preset: str = option("ft-mamba-small", "name of a shipped preset, or a JSON file", main=True)
    overrides: dict[str, Any] = option({}, "fields of FTMambaConfig, e.g. {hidden_size: 32}")

    def __post_init__(self) -> None:
        check_options(self)


_OF_ROWS = {
    "mask_known_positives": False,
    "n_sampled_items": 0,
    "user_weight_exponent": 0.0,
    "batch_order": "random",
}
"""Options that training on sequences does not read, and what they must then be."""


@dataclass(frozen=True)
class TrainingRecipe:
    """How the network is trained."""

    loss: str = option(
        "in_batch",
        "objective",
        choices=(
            "in_batch", "full_softmax", "full_mse", "bce", "mse", "sampled_softmax", "gbce",
        ),
    )  # fmt: skip
    sequences: str = option(
        "", "for users with a history: foretell after every event of each user's 'newest' ones, "
        "or every event once an epoch; empty: rows are interactions",
        choices=("", "newest", "every"),
    )  # fmt: skip
    n_negatives: int = option(
        4, "bce, mse: negatives for each positive; sampled_softmax, gbce: for a step", least=1
    )
    negatives: str = option(
        "uniform", "sampled_softmax: how they are drawn; mixed: half uniform, half by popularity",
        choices=("uniform", "popularity", "mixed"),
    )  # fmt: skip
    gbce_t: float = option(0.75, "gbce: 0 is plain cross-entropy, 1 calibrates", least=0, most=1)
    label_smoothing: float = option(
        0.0, "full_softmax of sequences: share of a label spread over all items", least=0, most=0.99
    )
    mask_history: bool = option(
        False, "full_softmax of sequences: what the user took before is no negative, as where "
        "evaluation.mask_seen leaves it out"
    )  # fmt: skip
    log_q: bool = option(
        True, "in_batch, sampled_softmax: correct for how often each item is drawn"
    )
    mask_known_positives: bool = option(
        False, "all but full_mse: a user's other training items are never negatives"
    )
    n_sampled_items: int = option(
        0, "full_softmax: items embedded a step beside the batch's own; 0: all", least=0
    )
    user_weight_exponent: float = option(
        0.0, "full_softmax: an interaction weighs (its user's interactions)^-exponent", least=0
    )
    positive_weight: float = option(5.0, "full_mse: weight of an interaction against 1", least=0)
    embedding_l2: float = option(1.0, "full_mse: penalty on the embeddings", least=0)
    batch_order: str = option(
        "random", "what a batch is: random interactions, or a stretch of time",
        choices=("random", "time"),
    )  # fmt: skip
    batch_size: int = option(1024, "interactions a step and process", least=1)
    num_epochs: int = option(20, "passes over the training interactions", least=1)
    stop_after_epochs: int = option(0, "stop early on the same schedule; 0: never", least=0)
    learning_rate: float = option(1e-3, "highest learning rate", least=0)
    schedule: str = option(
        "cosine", "learning rate after warm-up", choices=("cosine", "linear", "constant")
    )
    warmup_fraction: float = option(0.05, "part of all steps spent on warm-up", least=0, most=1)
    weight_decay: float = option(0.01, "AdamW; none on tokenizer, norms, biases, A_log, D", least=0)
    embedding_weight_decay: float = option(0.0, "AdamW, on the tokenizer's tables", least=0)
    adam_beta1: float = option(0.9, "AdamW", least=0, most=1)
    adam_beta2: float = option(0.999, "AdamW", least=0, most=1)
    max_grad_norm: float = option(1.0, "clip the gradient to this norm; 0: do not clip", least=0)
    gradient_accumulation_steps: int = option(
        1, "batches an optimizer step; in-batch negatives do not grow with it", least=1
    )
    mixed_precision: str = option("no", "forward pass in", choices=("no", "bf16", "fp16"))
    evaluate_every: int = option(1, "validate after every so many epochs", least=1)
    early_stopping_patience: int = option(
        5, "stop after so many validations without a better score; 0: never", least=0
    )
    checkpointing_steps: int | str = option("", "save each N steps, or 'epoch'; empty: never")
    checkpoints_total_limit: int = option(2, "checkpoints kept; 0: all", least=0)
    resume_from_checkpoint: str = option("", "a checkpoint folder, or 'latest'")
    with_tracking: bool = option(False, "log to a tracker")
    report_to: str = option("tensorboard", "tracker", choices=("tensorboard", "trackio"))
    log_every_steps: int = option(50, "steps between two tracked losses", least=1)

    def __post_init__(self) -> None:
        check_options(self)
        steps = self.checkpointing_steps
        if steps not in ("", "epoch") and not (isinstance(steps, int) and steps > 0):
            raise ValueError(
                f"checkpointing_steps must be a whole number > 0, 'epoch' or empty, got {steps!r}"
            )
        self._check_sequences()

    def _check_sequences(self) -> None:
        """Refuse what training on sequences would not read."""
        if self.mask_history and (not self.sequences or self.loss != "full_softmax"):
            raise ValueError(
                "mask_history is for sequences and loss 'full_softmax', got sequences "
                f"{self.sequences!r} and loss {self.loss!r}; change them or remove it"
            )
        if not self.sequences:
            return
        for name, needed in _OF_ROWS.items():
            if (value := getattr(self, name)) != needed:
                raise ValueError(
                    f"{name} is for rows that are single interactions: it must be {needed!r} where "
                    f"sequences is {self.sequences!r}, got {value!r}; remove one of the two"
                )


@dataclass(frozen=True)
class EvaluationRecipe:
    """How the trained model is judged."""

    k: tuple[int, ...] = option((5, 10), "lengths of the ranked list", least=1)
    mask_seen: bool = option(True, "leave out items that a user has in training")
    selection_metric: str = option("NDCG@10", "validation metric that picks the epoch")
    refit: bool = option(True, "train again on train + validation for the best number of epochs")
    baselines: tuple[str, ...] = option((), "baselines evaluated beside the model")
    baseline_options: dict[str, Any] = option({}, "baseline -> its options, unless tuned")
    tune_baselines: bool = option(False, "choose the baselines' options on validation")
    rivals: dict[str, Any] = option(
        {},
        "other networks trained beside the model: name -> {preset, overrides, training, columns}",
    )
    user_groups: tuple[str, ...] = option(
        (), "columns of the users; the test users of each value are judged apart"
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class CardRecipe:
    """What the model card says that no run can know."""

    title: str = option("", "the model's name for people; empty: the network and the data")
    licence: str = option("apache-2.0", "licence of the weights, as the Hub spells it")
    data_licence: str = option("", "what the data's terms allow, one sentence")
    data_hub_id: str = option("", "the data set on the Hub, if it is there")
    citation: str = option("", "BibTeX that cites this model")
    country: str = option("", "ISO code such as FRA, whose grid turns energy into emissions")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class ExamplesRecipe:
    """For whom the finished run shows recommendations."""

    user_key: str = option("", "a user of the tables")
    record: dict[str, Any] = option({}, "raw columns of somebody who is in no table")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Recipe:
    """Everything that rebuilds a run."""

    data: DataRecipe = option(DataRecipe(), "the tables")
    schema: dict[str, Any] | None = option(None, "columns of the tables; None: inferred")
    split: SplitRecipe = option(SplitRecipe(), "train, validation and test")
    model: ModelRecipe = option(ModelRecipe(), "the network")
    training: TrainingRecipe = option(TrainingRecipe(), "the training")
    evaluation: EvaluationRecipe = option(EvaluationRecipe(), "the evaluation")
    examples: ExamplesRecipe = option(ExamplesRecipe(), "what the finished run shows")
    card: CardRecipe = option(CardRecipe(), "the model card")
    output_dir: str = option("runs/latest", "folder of the run's checkpoint and results")
    seed: int = option(42, "seed of weights, order, dropout and negatives", least=0)
    max_shard_size: str = option("5GB", "largest file of weights, such as 500MB")
    push_to_hub: bool = option(False, "push to the Hub in the background, as hub_strategy says")
    hub_model_id: str = option("", "Hub repository to push to, such as me/films")
    hub_private: bool = option(False, "make the repository private if it is made")
    hub_strategy: str = option(
        "end",
        "the finished checkpoint alone; also what is saved, on the branch 'checkpoints'; or also "
        "what is saved, on 'main'",
        choices=HUB_STRATEGIES,
    )
    hub_catalogue: bool = option(True, "push the items' keys, titles and embeddings too")
    hub_training_state: bool = option(
        False, "checkpoint: push what resuming needs too: optimizer and best weights"
    )
    hub_patience: int = option(600, "seconds that the end of a run waits for the Hub", least=0)

    def __post_init__(self) -> None:
        check_options(self)
        if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", self.max_shard_size):
            raise ValueError(
                f"max_shard_size must be a size such as 5GB or 500MB, got {self.max_shard_size!r}"
            )
        if self.push_to_hub:
            self._check_hub()

    def _check_hub(self) -> None:
        if not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id, e.g. --hub_model_id me/my-model")
        if self.hub_strategy != "end" and not self.training.checkpointing_steps:
            raise ValueError(
                f"hub_strategy {self.hub_strategy!r} pushes what is saved, and nothing is saved; "
                "give --checkpointing_steps epoch, or a number of steps"
            )
        if self.hub_training_state and self.hub_strategy != "checkpoint":
            raise ValueError(
                "hub_training_state needs hub_strategy 'checkpoint': only its branch takes what "
                f"resuming needs, got {self.hub_strategy!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for YAML; reading them back gives an equal recipe."""
        values: dict[str, Any] = to_plain(self)
        return values
