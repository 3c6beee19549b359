"""A recipe: every value that rebuilds a run, one frozen section for each stage of it.

An option is declared once, with its help text, choices and range; reading, checking and the command
line (`ftmamba.flags`) are made from the declaration. It stays our own: HfArgumentParser reads flat
dataclasses only, without sections, near names or options that depend on a choice.
"""

# `option` is `dataclasses.field` with the facts that reading and the command line need.
# ruff: noqa: RUF009

import functools
import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ftmamba.checks import unique_keys
from modeling_ftmamba.configuration_ftmamba import near

Section = TypeVar("Section")

PACKAGE_FOLDER = Path(__file__).resolve().parent
FOR_SPLIT = "for_split"
"""Key of a recipe's file: from the name of a split to what else changes with it."""

NAME_OF_TYPE: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text",
    dict: "a mapping", tuple: "a list",
}  # fmt: skip


def option(
    default: Any,
    help_text: str,
    *,
    choices: Sequence[str] = (),
    least: float = -math.inf,
    most: float = math.inf,
    read_by: Mapping[str, Any] | None = None,
    needs: str = "",
) -> Any:
    """Declare an option.

    Args:
        default: its value when neither the file nor a flag sets it.
        help_text: one line for `--help`.
        choices: the values it may have; empty allows any.
        least: the least value of a number.
        most: the greatest value of a number.
        read_by: choices of the main option that read it, each with its own default.
        needs: the option of the same section without which it is not read; of a mapping, the list
            that its keys are of.
    """
    about = {"help": help_text, "choices": choices, "least": least, "most": most}
    about |= {"read_by": read_by, "needs": needs, "default": default}
    return field(default_factory=lambda: deepcopy(default), metadata=about)


@dataclass(frozen=True)
class _Options:
    """A section; refuses values out of their range and options that nothing would read."""

    main: ClassVar[str] = ""
    """The option that a section is named by, so that `--split random` sets `split.kind`."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, about = getattr(self, f.name), f.metadata
            choices, least, most = about["choices"], about["least"], about["most"]
            if choices and value is not None and value not in choices:
                raise ValueError(
                    f"{f.name} must be one of {', '.join(choices)}, got {value!r}"
                    f"{near(value, choices)}"
                )
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not least <= number <= most:
                    limit = f">= {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                    raise ValueError(f"{f.name} must be {limit}, got {number!r}")
            if about["read_by"]:
                self._check_choice(f.name, value, about["read_by"])
            needs = about["needs"]
            if needs and value != (read := read_part(f, value, getattr(self, needs))):
                unread = sorted(value.keys() - read) if isinstance(value, Mapping) else value
                raise ValueError(
                    f"{f.name} {unread!r} is not read without {needs}; remove it, or set {needs}"
                )
        self.check()

    def _check_choice(self, name: str, value: Any, read_by: Mapping[str, Any]) -> None:
        """Refuse an option that the main option's choice does not read; fill in its default."""
        choice = getattr(self, self.main)
        if value is None and choice in read_by:
            object.__setattr__(self, name, read_by[choice])
        elif value is not None and choice not in read_by:
            reads = [f.name for f in fields(self) if choice in (f.metadata["read_by"] or ())]
            raise ValueError(
                f"{name} is not read by {choice!r}; remove it, or choose one of "
                f"{', '.join(read_by)}. {choice} reads: {', '.join(reads) or 'no option'}"
            )

    def check(self) -> None:
        """Check what concerns several options."""


def read_part(about: Field[Any], value: Any, needed: Any) -> Any:
    """Return the part of a value that is read, given that of the option that it needs."""
    if isinstance(value, Mapping):
        return {key: one for key, one in value.items() if key in needed}
    return value if needed else about.metadata["default"]


@dataclass(frozen=True)
class DataRecipe(_Options):
    """Where the tables come from: a named data set, or files."""

    main = "name"
    name: str = option("", "a named data set: movielens-100k, ml-1m or amazon-beauty")
    folder: str = option("", "folder that already holds the named data set", needs="name")
    users: str | tuple[str, ...] = option(
        "", "table of users, or several: CSV, Parquet, JSON lines, a Hub data set; empty: those of "
        "the interactions")  # fmt: skip
    items: str | tuple[str, ...] = option(
        "", "table of items, or several; empty: those of the interactions")  # fmt: skip
    interactions: str = option("", "table of interactions")
    drop_unknown: bool = option(False, "drop interactions whose user or item is in no table",
                                needs="interactions")  # fmt: skip
    positive_threshold: float | None = option(None, "keep interactions of at least this weight")
    cache_dir: str = option("", "folder for downloads and encoded tables; empty: ~/.cache/ftmamba")

    def check_complete(self) -> None:
        """Raise ValueError unless exactly one source of tables is named in full."""
        files = ("users", "items", "interactions")
        own = [name for name in files if getattr(self, name)]
        if self.name and own:
            raise ValueError(
                f"data has both the name {self.name!r} and {', '.join(own)}; keep one of the two"
            )
        if not self.name and not self.interactions:
            raise ValueError(
                "data lacks interactions; give the file of interactions, or a named data set as "
                "data.name (the recipe of a run on tables in memory names no files)"
            )


SPLITS = ("random", "leave-last-out", "global-time")
_FRACTIONS: dict[str, Any] = {"random": None, "global-time": None}


@dataclass(frozen=True)
class SplitRecipe(_Options):
    """How interactions are divided; None leaves the split's own default."""

    main = "kind"
    kind: str = option("global-time", "how train, validation and test are divided", choices=SPLITS)
    cut: float | None = option(None, "quantile of time at which the test begins",
                               read_by={"global-time": None})  # fmt: skip
    test_fraction: float | None = option(None, "fraction of the interactions tested",
                                         read_by=_FRACTIONS)  # fmt: skip
    validation_fraction: float | None = option(
        None, "fraction of the interactions for validation", read_by=_FRACTIONS
    )
    seed: int | None = option(None, "seed of the split; None: the seed of the run",
                              read_by={"random": None})  # fmt: skip

    def options(self, seed: int) -> dict[str, float | int]:
        """Return the options that were set; a random split takes the run's seed if it has none."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "kind"}
        if self.kind == "random" and self.seed is None:
            values["seed"] = seed
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ModelRecipe(_Options):
    """Which network: a preset, and the configuration fields that replace its own."""

    main = "preset"
    preset: str = option("ft-mamba-small", "name of a shipped preset, or a JSON file")
    overrides: dict[str, Any] = option({}, "fields of FTMambaConfig, e.g. {hidden_size: 32}")


SAMPLED = {"sampled_softmax": 4, "gbce": 4, "bce": 4, "mse": 4}
LOSSES = ("in_batch", "sampled_softmax", "full_softmax", "full_mse", "gbce", "bce", "mse")
_WITH_NEGATIVES = dict.fromkeys(("in_batch", "full_softmax", *SAMPLED), False)
_TIME_BUCKETS = dict.fromkeys(("in_batch", "full_softmax", "full_mse", "sampled_softmax", "gbce"))


@dataclass(frozen=True)
class LossRecipe(_Options):
    """The objective, and the options that it reads; an option of another loss is refused."""

    main = "name"
    name: str = option("in_batch", "the loss", choices=LOSSES)
    n_negatives: int = option(
        None, "negatives drawn: by bce and mse for each target, else for all targets of a step",
        least=1, read_by=SAMPLED,
    )  # fmt: skip
    negatives: str = option(
        None, "how they are drawn; mixed: half uniform, half by popularity",
        choices=("uniform", "popularity", "mixed"), read_by={"sampled_softmax": "uniform"},
    )  # fmt: skip
    t: float = option(None, "0 is plain binary cross-entropy, 1 calibrates fully", least=0, most=1,
                      read_by={"gbce": 0.75})  # fmt: skip
    log_q: bool = option(None, "correct for how often each item is a negative",
                         read_by={"in_batch": True, "sampled_softmax": True})  # fmt: skip
    label_smoothing: float = option(None, "share of a label that is spread over all items", least=0,
                                    most=0.99, read_by={"full_softmax": 0.0})  # fmt: skip
    mask_known_positives: bool = option(None, "a user's other items are not used as negatives",
                                        read_by=_WITH_NEGATIVES)  # fmt: skip
    mask_history: bool = option(None, "items of the history are not used as negatives",
                                read_by=_WITH_NEGATIVES)  # fmt: skip
    n_sampled_items: int = option(None, "items embedded a step beside the targets; 0: all", least=0,
                                  read_by={"full_softmax": 0})  # fmt: skip
    user_weight_exponent: float = option(None, "a target weighs (user's interactions)^-exponent",
                                         least=0, read_by={"full_softmax": 0.0})  # fmt: skip
    positive_weight: float = option(None, "weight of an interaction against 1", least=0,
                                    read_by={"full_mse": 5.0})  # fmt: skip
    l2: float = option(None, "penalty on the embeddings", least=0, read_by={"full_mse": 1.0})
    time_buckets: int | None = option(
        None, "groups of a step's targets by time, whose candidates have the popularity of the "
        "group's earliest; 0: of each target's own time; None: 0 with sampled_softmax and gbce, "
        "1 where batch_order is time, else 4", least=0, read_by=_TIME_BUCKETS,
    )  # fmt: skip

    def check(self) -> None:
        """Refuse options that exclude each other."""
        if self.mask_known_positives and self.mask_history:
            raise ValueError(
                "mask_history is part of mask_known_positives, for histories are made of training "
                "items; keep one of the two"
            )
        if self.label_smoothing and self.n_sampled_items:
            raise ValueError(
                "label_smoothing spreads labels over all items, of which n_sampled_items embeds "
                "only some; remove one of the two"
            )


@dataclass(frozen=True)
class TrainingRecipe(_Options):
    """How the network is trained."""

    loss: LossRecipe = option(LossRecipe(), "the objective")
    sequences: str = option(
        "", "for users with a history: predict the next item at every position of each user's "
        "'newest' events, or of 'every' event once an epoch; empty: rows are interactions",
        choices=("", "newest", "every"),
    )  # fmt: skip
    batch_order: str = option(
        "random", "rows of a batch: random interactions, or a stretch of time",
        choices=("random", "time"),
    )  # fmt: skip
    history_dropout: float = option(
        0.0, "share of the rows whose whole history is hidden in training, so that people without "
        "one are served too; sequences predict a first event from none anyway", least=0, most=0.99,
    )  # fmt: skip
    batch_size: int = option(1024, "rows or sequences a step and process", least=1)
    num_epochs: int = option(20, "passes over the training interactions", least=1)
    stop_after_epochs: int = option(0, "stop early on the same schedule; 0: never", least=0)
    learning_rate: float = option(1e-3, "highest learning rate", least=0)
    schedule: str = option("cosine", "learning rate after warm-up",
                           choices=("cosine", "linear", "constant"))  # fmt: skip
    warmup_fraction: float = option(0.05, "part of all steps spent on warm-up", least=0, most=1)
    weight_decay: float = option(0.01, "AdamW; none on tokenizer, norms, biases, A_log, D", least=0)
    embedding_weight_decay: float = option(0.0, "AdamW, on the tokenizer's tables", least=0)
    adam_beta1: float = option(0.9, "AdamW", least=0, most=1)
    adam_beta2: float = option(0.999, "AdamW", least=0, most=1)
    max_grad_norm: float = option(1.0, "clip the gradient to this norm; 0: do not clip", least=0)
    gradient_accumulation_steps: int = option(1, "batches an optimizer step", least=1)
    mixed_precision: str = option("no", "forward pass in", choices=("no", "bf16", "fp16"))
    evaluate_every: int = option(1, "validate after every so many epochs", least=1)
    early_stopping_patience: int = option(5, "stop after so many stale validations; 0: no", least=0)
    checkpointing_steps: int | str = option(
        "", "save each N steps, each 'epoch' or at the 'end'; empty: only before a refit"
    )
    checkpoints_total_limit: int = option(2, "checkpoints kept; 0: all", least=0,
                                          needs="checkpointing_steps")  # fmt: skip
    resume_from_checkpoint: str = option("", "a checkpoint folder, or 'latest'")
    allow_changed: tuple[str, ...] = option(
        (), "what may differ on resuming: 'data', where rows were added, or 'code'",
        needs="resume_from_checkpoint",
    )  # fmt: skip
    with_tracking: bool = option(False, "log to a tracker")
    report_to: str = option("tensorboard", "tracker", choices=("tensorboard", "trackio"),
                            needs="with_tracking")  # fmt: skip
    log_every_steps: int = option(50, "steps between two shown and tracked losses", least=1)

    def check(self) -> None:
        """Check when to save and to stop, and the order of batches."""
        steps = self.checkpointing_steps
        if steps not in ("", "epoch", "end") and not (isinstance(steps, int) and steps > 0):
            raise ValueError(
                "checkpointing_steps must be a whole number > 0, 'epoch', 'end' or empty, got "
                f"{steps!r}"
            )
        if self.loss.name == "in_batch" and self.batch_size == 1:
            raise ValueError(
                "batch_size 1 trains nothing with in_batch, whose negatives are the batch's other "
                "targets; give 2 or more, or another loss such as full_softmax"
            )
        if unknown := set(self.allow_changed) - {"data", "code"}:
            raise ValueError(f"allow_changed may name data and code, got {sorted(unknown)}")
        if self.stop_after_epochs > self.num_epochs:
            raise ValueError(
                f"stop_after_epochs {self.stop_after_epochs} is after the last of num_epochs "
                f"{self.num_epochs}; remove it, or raise num_epochs"
            )
        if self.sequences and self.batch_order != "random":
            raise ValueError(
                f"batch_order {self.batch_order!r} is for rows that are single interactions, but "
                f"sequences is {self.sequences!r}; remove one of the two"
            )
        if self.sequences and self.history_dropout:
            raise ValueError(
                f"history_dropout {self.history_dropout:g} is for rows that are single "
                f"interactions, but sequences is {self.sequences!r}, where a user's first event is "
                "predicted from none already; remove one of the two"
            )


@dataclass(frozen=True)
class EvaluationRecipe(_Options):
    """How the trained model is judged."""

    k: tuple[int, ...] = option((5, 10), "lengths of the ranked list", least=1)
    mask_seen: bool | None = option(
        None, "leave out items that a user has in training, here and in recommendations; None: "
        "unless the model learns a repeat_bias")  # fmt: skip
    selection_metric: str = option("NDCG@10", "validation metric that picks the epoch")
    refit: bool = option(True, "train on train + validation once validation has picked the epoch")
    refit_share: float | None = option(
        None, "go on from the trained weights for this share of the best number of epochs, at half "
        "the learning rate; None: train afresh for that number", least=0.01, most=1, needs="refit"
    )  # fmt: skip
    baselines: tuple[str, ...] = option(
        (), "simpler models evaluated beside it: popularity, popularity-recent, popularity-7d, "
        "popularity-14d, item-knn, ease, ials, markov, pctm")  # fmt: skip
    baseline_options: dict[str, Any] = option({}, "baseline -> its options", needs="baselines")
    tune_baselines: bool = option(False, "choose the baselines' options on validation",
                                  needs="baselines")  # fmt: skip
    rivals: dict[str, Any] = option(
        {}, "other networks trained beside it: name -> {preset, overrides, training, columns}"
    )
    user_groups: tuple[str, ...] = option((), "columns by whose values test users are judged apart")


@dataclass(frozen=True)
class CardRecipe(_Options):
    """What the model card says that no run can know."""

    title: str = option("", "the model's name for people; empty: the network and the data")
    licence: str = option("apache-2.0", "licence of the weights, as the Hub spells it")
    data_licence: str = option("", "what the data's terms allow, one sentence")
    data_hub_id: str = option("", "the data set on the Hub, if it is there")
    citation: str = option("", "BibTeX that cites this model")
    country: str = option("", "ISO code such as FRA, whose grid turns energy into emissions")


@dataclass(frozen=True)
class ExamplesRecipe(_Options):
    """For whom the finished run shows recommendations."""

    user_key: str = option("", "a user of the tables")
    record: dict[str, Any] = option({}, "raw columns of a user who is in no table")
    history: tuple[str, ...] = option((), "keys of items, oldest first: the history of a user "
                                      "who is in no table")  # fmt: skip


_of_hub = functools.partial(option, needs="push_to_hub")


@dataclass(frozen=True)
class Recipe(_Options):
    """Everything that rebuilds a run."""

    data: DataRecipe = option(DataRecipe(), "the tables")
    schema: dict[str, Any] | None = option(None, "columns of the tables; None: inferred")
    split: SplitRecipe = option(SplitRecipe(), "train, validation and test")
    model: ModelRecipe = option(ModelRecipe(), "the network")
    training: TrainingRecipe = option(TrainingRecipe(), "the training")
    evaluation: EvaluationRecipe = option(EvaluationRecipe(), "the evaluation")
    blend: str = option(
        "none", "auto: add counted neighbours and popularity to the score, weighed on validation",
        choices=("none", "auto"),
    )  # fmt: skip
    examples: ExamplesRecipe = option(ExamplesRecipe(), "what the finished run shows")
    card: CardRecipe = option(CardRecipe(), "the model card")
    output_dir: str = option("runs/latest", "folder of the run's checkpoint and results")
    overwrite_output_dir: bool = option(
        False, "replace the checkpoint of another run there, and keep its training states apart"
    )
    seed: int = option(42, "seed of weights, order, dropout and negatives", least=0)
    max_shard_size: str = option("5GB", "largest file of weights, such as 500MB")
    push_to_hub: bool = option(False, "push to the Hub in the background, as hub_strategy says")
    hub_model_id: str = option("", "Hub repository of the push and the card, such as me/films")
    hub_private: bool = _of_hub(False, "make the repository private if it is made")
    hub_strategy: str = _of_hub(
        "end", "the finished model alone; also each training checkpoint, on the branch "
        "'checkpoints'; or also each of them, on 'main'",
        choices=("end", "checkpoint", "every_save"),
    )  # fmt: skip
    hub_catalogue: bool = _of_hub(True, "push the items' keys, titles and embeddings too")
    hub_training_state: bool = _of_hub(False, "checkpoint: push what resuming needs too")
    hub_patience: int = _of_hub(600, "seconds that the end of a run waits for the Hub", least=0)

    def check(self) -> None:
        """Check the size of shards, and what is pushed."""
        if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", self.max_shard_size):
            raise ValueError(
                f"max_shard_size must be a size such as 5GB or 500MB, got {self.max_shard_size!r}"
            )
        if self.evaluation.mask_seen is None:
            masked = not self.model.overrides.get("repeat_bias", False)
            evaluation = replace(self.evaluation, mask_seen=masked)
            object.__setattr__(self, "evaluation", evaluation)
        if not self.push_to_hub:
            return
        if not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id, e.g. --hub_model_id me/my-model")
        if self.hub_strategy != "end" and not self.training.checkpointing_steps:
            raise ValueError(
                f"hub_strategy {self.hub_strategy!r} pushes training checkpoints, and none is "
                "saved; give --checkpointing_steps epoch, or a number of steps"
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


def to_plain(value: Any) -> Any:
    """Return dataclasses as mappings without what a choice does not read, and tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: to_plain(v) for f, v in pairs if v is not None or not f.metadata["read_by"]}
    if isinstance(value, tuple | list):
        return [to_plain(element) for element in value]
    if isinstance(value, Mapping):
        return {key: to_plain(element) for key, element in value.items()}
    return value


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain values; an unknown key is refused with the near one suggested."""
    return build(Recipe, upgraded(values))


def build(section: type[Section], values: Mapping[str, Any], where: str = "") -> Section:
    """Build a section from plain values, converting each to its annotation.

    Args:
        section: a dataclass whose fields were made by `option`.
        values: as read from YAML or from flags.
        where: dotted name of the section, for messages.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or one out of its range.
    """
    hints = _options_of(section)  # type: ignore[arg-type]  # classes are hashable
    converted = {}
    for key, value in values.items():
        if key not in hints:
            inside = f"section {where!r} of the recipe" if where else "the recipe"
            raise ValueError(
                f"{inside} has no key {key!r}{near(key, hints)}; it has: {', '.join(hints)}"
            )
        converted[key] = convert(value, hints[key], f"{where}.{key}" if where else key)
    try:
        return section(**converted)
    except ValueError as error:
        raise ValueError(f"{where}.{error}" if where else str(error)) from None


def convert(value: Any, kind: Any, name: str) -> Any:
    """Convert a YAML value or a flag's text to the annotation of the option `name`.

    Numbers may come as text, since YAML 1.1 reads `1e-4` as text.

    Raises:
        ValueError: the value does not fit.
    """
    origin, members = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        plain = [member for member in members if member is not type(None)]
        if len(plain) < len(members) and value in (None, "null", "none"):
            return None
        for member in plain[:-1]:
            try:
                return convert(value, member, name)
            except ValueError:
                continue
        return convert(value, plain[-1], name)
    if is_dataclass(kind):
        value = as_mapping(value, kind)
        if isinstance(value, Mapping):
            return build(kind, value, name)  # type: ignore[arg-type]
    elif origin is tuple:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if isinstance(parts, list | tuple):
            return tuple(convert(part, members[0], name) for part in parts if part != "")
    elif dict in (kind, origin) and isinstance(value, Mapping):
        return dict(value)
    elif kind is str and isinstance(value, str):
        return value
    elif kind in (int, float, bool) and (number := _scalar(value, kind)) is not None:
        return number
    wanted = NAME_OF_TYPE.get(dict if is_dataclass(kind) else origin or kind, str(kind))
    raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _scalar(value: Any, kind: type) -> Any:
    """Return a value, which may be text, as a bool, whole or finite number; None if it is none."""
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, str):
            return words.get(value.lower())
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return None
    return number if kind is float else value if isinstance(value, int) else int(number)


@functools.cache
def _options_of(section: Any) -> Mapping[str, Any]:
    hints = get_type_hints(section)
    return {f.name: hints[f.name] for f in fields(section)}


def as_mapping(value: Any, section: Any) -> Any:
    """Return a section that is given by its main option alone as a mapping."""
    main = getattr(section, "main", "")
    return {main: value} if main and isinstance(value, str) else value


def lay_over(section: Any, values: Mapping[str, Any], partial: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values of a section option by option, the schema and other mappings whole.

    A loss of another name replaces the whole loss: its options were the former's. So where an
    option is switched off, those that need it are left out.
    """
    hints, merged = _options_of(section), dict(values)
    for name, part in partial.items():
        kind = hints.get(name)
        below, part = as_mapping(merged.get(name), kind), as_mapping(part, kind)  # noqa: PLW2901
        if is_dataclass(kind) and isinstance(below, Mapping) and isinstance(part, Mapping):
            is_other = kind is LossRecipe and "name" in part and part["name"] != below.get("name")
            part = part if is_other else lay_over(kind, below, part)  # noqa: PLW2901
        merged[name] = part
    return _only_read(section, merged, [f for f in fields(section) if f.name not in partial])


def _only_read(
    section: Any, values: Mapping[str, Any], about: Sequence[Field[Any]]
) -> dict[str, Any]:
    """Return the values without what is not read of some of the options."""
    hints, result = _options_of(section), dict(values)
    for f in about:
        needs = f.metadata["needs"]
        if f.name in values and needs in values:
            with suppress(ValueError):  # a wrong value is named where the section is built
                needed = convert(values[needs], hints[needs], needs)
                result[f.name] = read_part(f, values[f.name], needed)
    return result


def choose_variant(values: Mapping[str, Any], split_of_flags: str | None) -> dict[str, Any]:
    """Return the recipe with the part for its split laid over it and the other parts gone.

    Args:
        values: a recipe as read from YAML.
        split_of_flags: the split that a flag names, which wins over the file's.

    Raises:
        ValueError: `for_split` is no mapping of known splits to mappings.
    """
    rest = {key: value for key, value in values.items() if key != FOR_SPLIT}
    variants = values.get(FOR_SPLIT) or {}
    if not isinstance(variants, Mapping):
        raise ValueError(
            f"{FOR_SPLIT} must be a mapping of splits to partial recipes, got {variants!r}"
        )
    for name, partial in variants.items():
        if name not in SPLITS:
            raise ValueError(f"{FOR_SPLIT} names an unknown split {name!r}{near(name, SPLITS)}")
        if not isinstance(partial, Mapping):
            raise ValueError(f"{FOR_SPLIT}.{name} must be a partial recipe, got {partial!r}")
    split = as_mapping(rest.get("split"), SplitRecipe)
    kind = split_of_flags or (split or {}).get("kind", SplitRecipe().kind)
    return lay_over(Recipe, rest, variants.get(kind, {}))


_NEW = ("name", "t", "l2", "time_buckets")
_MOVED = {f.name: f.name for f in fields(LossRecipe) if f.name not in _NEW}
_MOVED |= {"gbce_t": "t", "embedding_l2": "l2"}
"""Options of the loss in the first release, which stood beside it, and what they are called now."""


def upgraded(values: Mapping[str, Any], schema: Any = None) -> dict[str, Any]:
    """Return a recipe of the first release, or a part of one, as one of today.

    Options of the loss move to it; those that it did not read are left out. Popularity stays as of
    the earliest target of a step. A recipe of today is returned as it is.
    """
    result, schema = dict(values), values.get("schema", schema)
    training = values.get("training")
    if isinstance(training, Mapping) and training.keys() & _MOVED:
        loss = as_mapping(training.get("loss") or {}, LossRecipe)
        moved = {new: training[old] for old, new in _MOVED.items() if old in training}
        if name := loss.get("name"):
            for f in fields(LossRecipe):
                if name not in (f.metadata["read_by"] or (name,)):
                    moved.pop(f.name, None)
            if not training.get("sequences"):
                moved.pop("label_smoothing", None)
            if name in ("full_softmax", "full_mse") and "popularity_days" in str(schema):
                moved["time_buckets"] = 1
        kept = {key: value for key, value in training.items() if key not in (*_MOVED, "loss")}
        kept = _only_read(TrainingRecipe, kept, fields(TrainingRecipe))
        result = _only_read(Recipe, result, fields(Recipe))
        result["training"] = {"loss": {**loss, **moved}, **kept}
    for key in (FOR_SPLIT, "rivals"):
        if isinstance(parts := values.get(key), Mapping):
            result[key] = {
                name: upgraded(part, schema) if isinstance(part, Mapping) else part
                for name, part in parts.items()
            }
    if isinstance(evaluation := values.get("evaluation"), Mapping):
        result["evaluation"] = upgraded(evaluation, schema)
    return result


def configuration_folder() -> Path:
    """Return the folder of recipes, presets and launch files.

    A wheel carries it inside the package as `_configuration`; in a source tree, an editable
    install included, it is `configuration` beside the package.
    """
    installed = PACKAGE_FOLDER / "_configuration"
    return installed if installed.is_dir() else PACKAGE_FOLDER.parent / "configuration"


def shipped_names(kind: str) -> list[str]:
    """Return the names of the shipped `recipes`, `presets` or `accelerate` files."""
    return sorted(path.stem for path in (configuration_folder() / kind).glob("*.*"))


def read_recipe(path_or_name: str | Path) -> dict[str, Any]:
    """Read a recipe's YAML as a mapping, from a path or by a shipped name.

    Raises:
        FileNotFoundError: neither a file nor a shipped recipe.
        ValueError: the file is not YAML, or not a mapping.
    """
    return upgraded(_read(path_or_name, "recipes", ".yaml"))


def load_preset(path_or_name: str | Path) -> dict[str, Any]:
    """Read the configuration fields of a preset, from a path or by a shipped name."""
    return _read(path_or_name, "presets", ".json")


class UniqueKeysLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML's own loader keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        met = set()
        for key in keys:
            if key.value in met and key.value != "<<":
                line = f"again in line {key.start_mark.line + 1}"
                raise yaml.YAMLError(f"the key {key.value!r} stands {line}; keep one of the two")
            met.add(key.value)
        return node


def _read(path_or_name: str | Path, kind: str, suffix: str) -> dict[str, Any]:
    path = Path(path_or_name)
    shipped = configuration_folder() / kind / f"{path.name.removesuffix(suffix)}{suffix}"
    if not path.is_file() and path.parent == Path() and shipped.is_file():
        path = shipped
    if not path.is_file():
        names = shipped_names(kind)
        raise FileNotFoundError(
            f"no file {str(path)!r} and no shipped one of that name in {kind}"
            f"{near(path.name.removesuffix(suffix), names)}; shipped: {', '.join(names) or 'none'}"
        )
    text, thing = path.read_text(encoding="utf-8"), f"{kind[:-1]} {str(path)!r}"
    try:
        values = (
            json.loads(text, object_pairs_hook=unique_keys)
            if suffix == ".json"
            else yaml.load(text, UniqueKeysLoader)
        )
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{thing} is not valid {suffix[1:].upper()}: {error}") from None
    if not isinstance(values, dict | None):
        raise ValueError(f"{thing} must be a mapping of sections, got {values!r}")
    return values or {}
