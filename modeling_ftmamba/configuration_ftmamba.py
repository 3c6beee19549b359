"""Configuration of FT-Mamba: what a column is, one tower, and the two-tower recommender.

A record is encoded into at most four tensors a tower, in column order within each:

    numeric       float32 (B, P)  one slot a `numeric` column, NaN = missing
    category_ids  int64   (B, C)  one slot a `categorical` column
    set_ids       int64   (B, S)  `max_length` slots a `categories` column, padded with 0
    dense         float32 (B, Q)  `dimension` slots a `vector` or `timestamp` column, NaN = missing

A column of kind `history`, of the user tower alone, is in none of them: its events come beside.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

PADDING_ID, MISSING_ID, UNSEEN_ID, N_SPECIAL_IDS = 0, 1, 2, 3
HISTORY = "history"
GAP = "gap"  # what a scan may decay with: log(1 + seconds since the event before)
KINDS = ("numeric", "categorical", "categories", "timestamp", "vector", HISTORY)
SCALINGS = ("standard", "quantile", "none")
EVENT_FEATURES = (GAP, "weight")  # any other name is a numeric column of the interactions
EVENT_KEYS = ("item", "time", "weight")  # of any event given as a dict
# Standardised time, then sine and cosine of the hour of day, day of week and day of year.
TIMESTAMP_DIMENSION = 7
TENSOR_OF_KIND = {
    "numeric": "numeric", "categorical": "category_ids", "categories": "set_ids",
    "timestamp": "dense", "vector": "dense",
}  # fmt: skip

LARGEST_CONTEXT = 1e30  # of a number in a column of the interactions that is an event feature
SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 2 * LARGEST_CONTEXT  # of a standard deviation, in 32 bits
MOST_COLUMNS, MOST_SLOTS = 4096, 2**16  # of a tower; slots together in the tensors of a record
MOST_IDS = 2**31 - 1
MOST_NAME = 1000  # characters of a column's name

# Which kinds of column read an option; the others of a column are read by all.
_KINDS_READING = {
    "min_count": ("categorical", "categories"), "max_vocabulary": ("categorical", "categories"),
    "hash_buckets": ("categorical", "categories"), "separator": ("categories",),
    "scaling": ("numeric",), "popularity_days": ("numeric",), "event_features": (HISTORY,),
}  # fmt: skip


def near(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or an empty text."""
    by_form = {str(one).lower(): one for one in known}
    matches = get_close_matches(str(word).lower(), by_form, n=1, cutoff=cutoff)
    return f"; did you mean {by_form[matches[0]]!r}?" if matches else ""


@dataclass(frozen=True)
class Column:
    """One column of a table of users or items; what is fitted comes from the training rows."""

    name: str  # in the raw table and in a raw record
    kind: str  # one of `KINDS`
    min_count: int = 1  # values that occur less often in training count as rare
    max_vocabulary: int = 0  # keep at most so many values, the most frequent; 0 keeps all
    hash_buckets: int = 0  # extra ids for rare and unseen values; 0 sends them to `UNSEEN_ID`
    separator: str = ""  # splits a text into the members of a set
    scaling: str = "standard"  # of a numeric column, one of `SCALINGS`
    # If positive, the column is not in the raw table: it holds the natural logarithm of 1 + the
    # item's interactions in so many days before the row's time.
    popularity_days: int = 0
    vocabulary_size: int = 0  # fitted; ids 0..2 are special, then values, then hash buckets
    max_length: int = 0  # members kept of a set, fitted where 0; events of a history, 0 keeps all
    dimension: int = 0  # fitted; width of a vector or timestamp
    edges: tuple[float, ...] = ()  # fitted; bin edges b_0 < ... < b_T of the scaled value, for PLE
    # Of a history, what stands beside each event: some of `EVENT_FEATURES`, and numeric columns of
    # the interactions, such as a rating or a price, as they are.
    event_features: tuple[str, ...] = ()
    # Fitted; mean and standard deviation of each event feature, (0, 1) for `EVENT_FEATURES`; empty,
    # all are read as they are.
    event_scales: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for names, rule, holds in _COLUMN_RULES:
            for name in names.split():
                if not holds(getattr(self, name)):
                    raise self._wrong(name, rule)
        for name in ("popularity_days", "event_features"):
            if getattr(self, name) and self.kind not in _KINDS_READING[name]:
                raise self._wrong("kind", f"{_KINDS_READING[name][0]!r} for {name}")
        if len(self.event_scales) not in (0, len(self.event_features)):
            raise self._wrong("event_scales", f"{_SCALES} ({len(self.event_features)}) or none")
        # One edge would bound no bin.
        edges = tuple(map(float, self.edges)) if len(self.edges) > 1 else ()
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "event_features", tuple(self.event_features))
        scales = tuple((float(mean), float(deviation)) for mean, deviation in self.event_scales)
        object.__setattr__(self, "event_scales", scales)

    def _wrong(self, field: str, rule: str) -> ValueError:
        value = getattr(self, field)
        hint = near(value, {"kind": KINDS, "scaling": SCALINGS}.get(field, ()))
        return ValueError(
            f"column {self.name!r:.80}: {field} must be {rule}, got {value!r:.80}{hint}"
        )

    @property
    def context(self) -> tuple[str, ...]:
        """Event features that are columns of the interactions."""
        return tuple(name for name in self.event_features if name not in EVENT_FEATURES)

    @property
    def width(self) -> int:
        """Slots of this column in its tensor."""
        if self.kind == HISTORY:
            return 0
        if self.kind == "categories":
            return self.max_length
        return self.dimension if self.kind in ("timestamp", "vector") else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, ready for JSON or YAML."""
        values = {field.name: getattr(self, field.name) for field in fields(self)
                  if getattr(self, field.name) != field.default}  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def _is_list(values: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(values, list | tuple) and all(map(holds, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MOST_NAME


_SCALES = "a list of [mean, standard deviation > 0], one for each of event_features"
_COLUMN_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("name", f"a text of 1 to {MOST_NAME} characters", _is_name),
    ("kind", f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
    ("scaling", f"one of {', '.join(SCALINGS)}", lambda value: value in SCALINGS),
    ("min_count max_vocabulary hash_buckets popularity_days vocabulary_size max_length dimension",
     f"a whole number from 0 to {MOST_IDS}", lambda value: type(value) is int
     and 0 <= value <= MOST_IDS),
    ("separator", "a text", lambda value: isinstance(value, str)),
    ("edges", "a list of finite numbers that rise", lambda values: _is_list(values, _is_number)
     and all(abs(edge) < 1e300 for edge in values)
     and all(low < high for low, high in pairwise(values))),
    ("event_features", "a list of gap, weight and numeric columns of the interactions, each once, "
     f"not item or time, {MOST_COLUMNS} at most", lambda names: _is_list(names, _is_name)
     and len(set(names) - {"item", "time"}) == len(names) <= MOST_COLUMNS),
    ("event_scales", _SCALES, lambda pairs: _is_list(pairs, lambda pair: _is_list(pair, _is_number)
     and len(pair) == 2 and abs(pair[0]) <= LARGEST_SCALE
     and SMALLEST_SCALE <= pair[1] <= LARGEST_SCALE)),
)  # fmt: skip


def column_from_dict(values: Mapping[str, Any]) -> Column:
    """Build a column; an unknown key is refused with the near one suggested."""
    known = [f.name for f in fields(Column)]
    for key in values if isinstance(values, Mapping) else ():
        if key not in known:
            where = f"column {values.get('name')!r:.80} has an unknown key {key!r:.80}"
            raise ValueError(f"{where}{near(key, known)}; it may have: {', '.join(known)}")
    if not isinstance(values, Mapping) or not {"name", "kind"} <= values.keys():
        raise ValueError(f"a column must be an object with a name and a kind, got {values!r:.200}")
    return Column(**values)


def check_columns(columns: Sequence[Column], tower: str) -> None:
    """Check that no name and no history occurs twice, and that a record takes bounded room."""
    if len(columns) > MOST_COLUMNS:
        raise ValueError(f"the {tower} tower has {len(columns)} columns, of {MOST_COLUMNS} at most")
    name, times = next(iter(Counter(column.name for column in columns).most_common(1)), ("", 0))
    if times > 1:
        raise ValueError(f"{tower} column {name!r} occurs twice; remove one of them")
    histories = [column.name for column in columns if column.kind == HISTORY]
    if len(histories) > 1:
        raise ValueError(f"the {tower} tower has the histories {', '.join(histories)}; keep one")
    if (n_slots := sum(column.width for column in columns)) > MOST_SLOTS:
        widest = max(columns, key=lambda column: column.width)
        raise ValueError(
            f"the {tower} columns have {n_slots} slots, {MOST_SLOTS} at most; the widest is "
            f"{widest.name!r} with {widest.width}: set its max_length or leave it out"
        )


def columns_of_tensor(columns: Iterable[Column], tensor: str) -> list[Column]:
    """Return the columns whose slots lie in the named tensor, in order."""
    return [column for column in columns if TENSOR_OF_KIND.get(column.kind) == tensor]


def history_of(columns: Iterable[Column]) -> Column | None:
    """Return the column of kind `history`, if there is one."""
    return next((column for column in columns if column.kind == HISTORY), None)


MIXERS = ("mamba", "ssd", "attention")
POOLINGS = ("cls", "last", "mean")
NUMERIC_EMBEDDINGS = ("linear", "ple", "periodic")
NORM_POSITIONS = ("pre", "post", "sum")
FEED_FORWARDS = ("reglu", "relu", "gelu")
TOWERS = ("user", "item")

_CHOICES = {
    "mixer": MIXERS, "pooling": POOLINGS, "norm_position": NORM_POSITIONS,
    "feed_forward": FEED_FORWARDS, "numeric_embedding": NUMERIC_EMBEDDINGS,
}  # fmt: skip
_BOUNDS: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("hidden_size state_size conv_kernel expand n_frequencies projection_size frequency_scale "
     "layer_norm_eps time_step_min time_step_max time_step_floor", "> 0", lambda value: value > 0),
    ("num_hidden_layers time_step_rank ssd_head_size num_attention_heads intermediate_size "
     "head_hidden_size max_positions initializer_range", ">= 0", lambda value: value >= 0),
    ("attention_dropout feed_forward_dropout residual_dropout token_dropout unseen_probability",
     "in [0, 1)", lambda value: 0 <= value < 1),
)  # fmt: skip
# Keys that Transformers itself writes into or reads from a config, beside its dataclass fields.
_TRANSFORMERS_KEYS = (
    "attn_implementation", "auto_map", "custom_pipelines", "experts_implementation", "model_type",
    "name_or_path", "num_labels", "output_attentions", "per_layer_config", "torch_dtype",
    "trust_remote_code",
)  # fmt: skip


@strict
class FTMambaArchitecture(PreTrainedConfig):
    """Sizes and options of a tower; shared by the configs of one tower and of two."""

    # `save_pretrained` names this class in `auto_map`, so that `AutoConfig` finds it.
    _auto_class = "AutoConfig"

    hidden_size: int = 64  # width D of a token
    num_hidden_layers: int = 2  # 0 leaves tokens, pooling and head (an MLP tower)
    # `mamba` (the paper's), `ssd` (Mamba-2: one decay a head, a layer is matrix products) or
    # `attention` (the FT-Transformer's layer).
    mixer: str = "mamba"
    state_size: int = 16  # N, numbers of state of each channel
    conv_kernel: int = 4  # width of the causal convolution, in tokens
    expand: int = 2  # inner width of a mixer over hidden_size
    time_step_rank: int = 0  # of dt's projection in `mamba`; 0 means ceil(hidden_size / 16)
    time_step_min: float | int = 0.001  # dt starts log-uniform between this ...
    time_step_max: float | int = 0.1  # ... and this
    time_step_floor: float | int = 1e-4  # dt never starts below this
    # Channels a head of `ssd`; 0 means 32, or the largest power of two that fits the inner width.
    ssd_head_size: int = 0
    bidirectional: bool = False  # a second mixer in each layer, over the reversed tokens
    pooling: str = "cls"  # the output of the appended `[CLS]`, of the `last` column, or the `mean`
    # `pre` x + f(norm(x)), `post` x + norm(f(x)), or `sum` norm(x + f(x)), as in the first
    # Transformer and Mamba4Rec.
    norm_position: str = "pre"
    first_layer_norm: bool = True  # False leaves it out of the first layer, as FT-Transformer does
    mixer_residual: bool = True  # add a mixer's output to its input, or let it take its place
    mixer_feed_forward: bool = False  # a feed-forward in the layers of `mamba` and `ssd` too
    causal_attention: bool = False  # no token attends to a later one
    num_attention_heads: int = 0  # 0 means heads of 32 channels, or the next wider ones that fit
    feed_forward: str = "reglu"  # of a layer that has one
    intermediate_size: int = 0  # its hidden width; 0 means int(4 * hidden_size / 3)
    attention_dropout: float | int = 0.0  # on attention weights
    feed_forward_dropout: float | int = 0.0  # inside the feed-forward
    residual_dropout: float | int = 0.0  # on what a layer adds to its input
    token_dropout: float | int = 0.0  # on the tokens
    token_norm: bool = False  # a LayerNorm on the tokens, after their dropout
    category_bias: bool = True  # a vector of its own for each `categorical` column
    unseen_probability: float | int = 0.0  # share of ids that training replaces by the unseen id
    history_start: bool = False  # a learned token ahead of the events of a history
    # Multiply the embeddings of a history by sqrt(hidden_size) before anything is added, as the
    # Transformer does (Vaswani et al. 2017, section 3.4).
    scale_embedding: bool = False
    max_positions: int = 0  # learned positions of a history's events, oldest first; 0 means none
    # Learn for each channel (`ssd`: head) how far the gap ahead of an event lengthens dt.
    time_decay: bool = False
    numeric_embedding: str = "linear"  # the paper's, `ple` or `periodic` (Gorishniy et al. 2022)
    n_frequencies: int = 48  # of the periodic embedding
    frequency_scale: float | int = 0.01  # standard deviation of its initial frequencies
    final_norm: bool = True  # a LayerNorm on the pooled output
    with_head: bool = True  # without, the pooled output is the embedding
    head_hidden_size: int = 64  # 0 makes the head one linear map
    projection_size: int = 64  # width of the embedding, the same in both towers
    normalize_embeddings: bool = False  # scale embeddings to length 1
    # If positive, linear maps and tables start from N(0, its square), biases at 0 (Mamba4Rec).
    initializer_range: float | int = 0.0
    layer_norm_eps: float | int = 1e-5  # of every LayerNorm

    def __post_init__(self, **kwargs: Any) -> None:
        saved = kwargs.pop("_saved", False)
        if not saved:
            known = [name for name in type(self).__dataclass_fields__ if not name.startswith("_")]
            for key in kwargs:
                if not key.startswith("_") and key not in _TRANSFORMERS_KEYS:
                    name = type(self).__name__
                    raise ValueError(f"{name} has no field {key!r}{near(key, known)}")
        super().__post_init__(**kwargs)
        if not saved:
            self.refuse_unread()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a config of saved fields, as `from_pretrained` does.

        Unlike the constructor it accepts fields without effect, and unknown ones, which become
        attributes that are saved again: Transformers writes some, and so may anyone. A name that
        is private, or a method or property here, is left out with a warning.
        """
        known = {*cls.__dataclass_fields__, *_TRANSFORMERS_KEYS, "_commit_hash"}
        saved = {key: value for key, value in config_dict.items() if key in known or not (
            key.startswith("_") or key == "self" or hasattr(cls, key))}  # fmt: skip
        if left_out := sorted(config_dict.keys() - saved.keys()):
            logger.warning_once(f"the config's keys {', '.join(left_out)} are not read")
        return super().from_dict({**saved, "_saved": True}, **kwargs)

    def refuse_unread(self) -> None:
        """Raise ValueError for a field that departs from its default and has no effect."""
        raise NotImplementedError

    @property
    def inner_size(self) -> int:
        """Channels E of a Mamba layer."""
        return self.expand * self.hidden_size

    @property
    def dt_rank(self) -> int:
        """Rank of the projection of dt (mamba-ssm's `dt_rank`)."""
        return self.time_step_rank or math.ceil(self.hidden_size / 16)

    @property
    def n_ssd_heads(self) -> int:
        """Heads of an `ssd` layer."""
        return self.inner_size // (self.ssd_head_size or math.gcd(self.inner_size, 32))

    @property
    def n_attention_heads(self) -> int:
        """Heads of an attention layer."""
        if self.num_attention_heads:
            return self.num_attention_heads
        most = max(1, self.hidden_size // 32)
        return max(n for n in range(1, most + 1) if self.hidden_size % n == 0)

    @property
    def feed_forward_size(self) -> int:
        """Hidden width of a feed-forward."""
        return self.intermediate_size or int(4 * self.hidden_size / 3)

    def validate_fields(self) -> None:
        """Check every field by itself: choices, sizes and rates."""
        for field, allowed in _CHOICES.items():
            value = getattr(self, field)
            _check(field, value, value in allowed, f"one of {', '.join(allowed)}", allowed)
        for names, rule, holds in _BOUNDS:
            for field in names.split():
                _check(field, getattr(self, field), holds(getattr(self, field)), rule)

    def validate_combinations(self) -> None:
        """Check fields against each other."""
        size, attention = self.hidden_size, self.mixer == "attention"
        rules = (
            (self.with_head or self.projection_size == size,
             "projection_size must equal hidden_size where with_head is False, got "
             f"{self.projection_size} and {size}"),
            (self.time_step_min <= self.time_step_max,
             f"time_step_min must be <= time_step_max, got {self.time_step_min} > "
             f"{self.time_step_max}; swap them"),
            (self.num_hidden_layers or self.pooling == "mean", "pooling must be 'mean' where "
             f"num_hidden_layers is 0, got {self.pooling!r}: no token has seen the others"),
            (self.mixer != "ssd" or self.inner_size % (self.ssd_head_size or 1) == 0,
             f"ssd_head_size must divide expand * hidden_size, got {self.ssd_head_size} and "
             f"{self.inner_size}; set 0 to have it chosen"),
            (not attention or size % self.n_attention_heads == 0,
             f"hidden_size must be a multiple of num_attention_heads, got {size} and "
             f"{self.num_attention_heads}; set 0 to have them chosen"),
            (not attention or not self.bidirectional, "bidirectional must be False with mixer "
             "'attention', which sees both directions already"),
        )  # fmt: skip
        for holds, message in rules:
            if not holds:
                raise ValueError(message)


# What reads which fields, and whether a tower with columns of some kinds has it.
_READERS: tuple[tuple[str, str, Callable[[Any, set[str]], bool]], ...] = (
    ("num_hidden_layers above 0",
     "mixer norm_position first_layer_norm mixer_residual residual_dropout",
     lambda tower, _: tower.num_hidden_layers != 0),
    ("layers of mixer 'mamba' or 'ssd'",
     "state_size conv_kernel expand time_step_min time_step_max time_step_floor bidirectional "
     "mixer_feed_forward time_decay", lambda tower, _: tower.has_layers("mamba", "ssd")),
    ("layers of mixer 'mamba'", "time_step_rank", lambda tower, _: tower.has_layers("mamba")),
    ("layers of mixer 'ssd'", "ssd_head_size", lambda tower, _: tower.has_layers("ssd")),
    ("layers of mixer 'attention'", "causal_attention num_attention_heads attention_dropout",
     lambda tower, _: tower.has_layers("attention")),
    ("layers with a feed-forward (see mixer_feed_forward)",
     "feed_forward intermediate_size feed_forward_dropout", lambda tower, _:
     tower.has_layers("attention") or (tower.has_layers(*MIXERS) and tower.mixer_feed_forward)),
    ("a LayerNorm", "layer_norm_eps", lambda tower, _:
     tower.has_layers(*MIXERS) or tower.final_norm or tower.token_norm),
    ("a column of kind 'history'", "history_start scale_embedding max_positions time_decay",
     lambda _, kinds: HISTORY in kinds),
    ("a column of kind 'categorical' or 'categories'", "unseen_probability",
     lambda _, kinds: bool({"categorical", "categories"} & kinds)),
    ("numeric_embedding 'periodic'", "n_frequencies frequency_scale",
     lambda tower, _: tower.numeric_embedding == "periodic"),
    ("with_head", "head_hidden_size", lambda tower, _: tower.with_head),
)  # fmt: skip


@strict
class FTMambaTowerConfig(FTMambaArchitecture):
    """Configuration of one tower: its columns and its architecture."""

    model_type = "ftmamba_tower"

    columns: list[dict[str, Any]] | None = None  # of `Column`, in the order of the tokens

    def validate_columns(self) -> None:
        """Check every column, that no name occurs twice, and what a history asks of the layers."""
        columns = self.parsed_columns()
        check_columns(columns, "tower")
        if (history := history_of(columns)) is None:
            return
        attention, where = self.mixer == "attention", f"with the history {history.name!r}"
        if self.bidirectional or (attention and not self.causal_attention):
            remedy = "set bidirectional to False" if self.bidirectional else "set causal_attention"
            raise ValueError(f"layers must read from left to right {where}; {remedy}")
        if self.time_decay and (attention or GAP not in history.event_features):
            rule = "time_decay needs mixer 'mamba' or 'ssd' and the event feature 'gap'"
            found = f"mixer {self.mixer!r} and event_features {list(history.event_features)}"
            raise ValueError(f"{rule}, got {found}")
        if self.max_positions and not 0 < history.max_length <= self.max_positions:
            rule = f"max_length must be in 1..max_positions {where}"
            raise ValueError(f"{rule}, got {history.max_length} of {self.max_positions}")

    @property
    def decays_with_time(self) -> bool:
        """Whether the layers have a factor on dt from the gaps between events."""
        return self.time_decay and history_of(self.parsed_columns()) is not None

    def has_layers(self, *mixers: str) -> bool:
        """Return whether there are layers, of one of the mixers."""
        return self.num_hidden_layers != 0 and self.mixer in mixers

    def parsed_columns(self) -> list[Column]:
        """Return the columns as objects."""
        return [column_from_dict(column) for column in self.columns or []]

    def unread(self) -> dict[str, str]:
        """Return the fields that have no effect in this tower, each with what would read it.

        `numeric_embedding` and `category_bias` are never among them: a preset sets them for
        whatever columns there will be.
        """
        kinds = set(KINDS if self.columns is None else [one.kind for one in self.parsed_columns()])
        return {field: need for need, names, reads in _READERS if not reads(self, kinds)
                for field in names.split()}  # fmt: skip

    def refuse_unread(self) -> None:
        """Raise ValueError for an option that departs from its default and has no effect."""
        for field, need in self.unread().items():
            _refuse(field, field, getattr(self, field), need)
        _refuse_unread_of_columns(self.parsed_columns())


@strict
class FTMambaConfig(FTMambaArchitecture):
    """Configuration of the two-tower recommender.

    Its architecture is that of both towers. A section, `user_tower` or `item_tower`, holds the
    tower's `columns` and fields that depart from the shared values, for example
    `item_tower={"columns": [...], "num_hidden_layers": 4}`.
    """

    model_type = "ftmamba"

    user_tower: dict[str, Any] | None = None
    item_tower: dict[str, Any] | None = None
    temperature: float | int = 1.0  # initial divisor of the inner product
    learn_temperature: bool = False  # whether training changes it
    # Learn a number that is added to the inner product of a user and an item of the user's history:
    # below zero where people seldom take a thing again.
    repeat_bias: bool = False

    @classmethod
    def from_columns(
        cls,
        user_columns: list[dict[str, Any]],
        item_columns: list[dict[str, Any]],
        *,
        user_tower: dict[str, Any] | None = None,
        item_tower: dict[str, Any] | None = None,
        **architecture: Any,
    ) -> "FTMambaConfig":
        """Build a config from both towers' columns, fields of their own, and shared fields."""
        if "columns" in {**(user_tower or {}), **(item_tower or {})}:
            raise ValueError("a tower holds columns beside those of from_columns; give one")
        user = {**(user_tower or {}), "columns": user_columns}
        item = {**(item_tower or {}), "columns": item_columns}
        return cls(user_tower=user, item_tower=item, **architecture)

    def tower(self, name: str) -> FTMambaTowerConfig:
        """Return the config of the `user` or `item` tower, shared values filled in."""
        if name not in TOWERS:
            raise ValueError(f"tower must be one of {', '.join(TOWERS)}, got {name!r}")
        section = {field: getattr(self, field) for field in _SHARED_FIELDS} | self._section(name)
        try:
            tower: FTMambaTowerConfig = FTMambaTowerConfig.from_dict(section)
        except Exception as error:
            raise ValueError(f"{name}_tower: {error}") from error
        return tower

    def _section(self, name: str) -> dict[str, Any]:
        return getattr(self, f"{name}_tower") or {}

    def validate_towers(self) -> None:
        """Check the temperature and both sections; an error names the tower."""
        _check("temperature", self.temperature, self.temperature > 0, "> 0")
        for name in TOWERS:
            if "projection_size" in self._section(name):
                raise ValueError(f"{name}_tower sets projection_size, which both towers share")
            history = history_of(self.tower(name).parsed_columns())
            if name == "item" and history is not None:
                raise ValueError(f"item_tower: history {history.name!r} must be in user_tower")
            if name == "user" and history is None and self.repeat_bias:
                raise ValueError("repeat_bias needs a column of kind 'history' in user_tower")

    def refuse_unread(self) -> None:
        """Raise ValueError for an option that departs from its default and has no effect.

        A shared field must have an effect in one tower at least, a section's own in its tower.
        """
        known, unread = [*_SHARED_FIELDS, "columns"], {}
        for name in TOWERS:
            section, tower = self._section(name), self.tower(name)
            unread[name] = tower.unread()
            for key, value in section.items():
                if key not in known:
                    raise ValueError(f"{name}_tower has no field {key!r}{near(key, known)}")
                if key in unread[name]:
                    _refuse(f"{name}_tower: {key}", key, value, unread[name][key])
            _refuse_unread_of_columns(tower.parsed_columns())
        for field in unread["user"].keys() & unread["item"].keys():
            _refuse(field, field, getattr(self, field), unread["user"][field])


_SHARED_FIELDS = tuple(name for name in FTMambaArchitecture.__annotations__ if name[0] != "_")


def _check(field: str, value: object, ok: bool, rule: str, known: Iterable[str] = ()) -> None:
    if not ok:
        raise ValueError(f"{field} must be {rule}, got {value!r}{near(value, known)}")


def _refuse(where: str, field: str, value: object, need: str) -> None:
    default = FTMambaArchitecture.__dataclass_fields__[field].default
    if value != default:
        text = f"{where} has no effect here, got {value!r}: it needs {need}"
        raise ValueError(f"{text}; remove it, or leave it at {default!r}")


def _refuse_unread_of_columns(columns: Iterable[Column]) -> None:
    for column in columns:
        for field, kinds in _KINDS_READING.items():
            default = Column.__dataclass_fields__[field].default
            if column.kind not in kinds and getattr(column, field) != default:
                text = f"column {column.name!r}: {field} has no effect on kind {column.kind!r}"
                raise ValueError(f"{text}, it needs {' or '.join(kinds)}; remove it")
