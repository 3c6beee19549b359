"""Configuration of FT-Mamba towers and of the two-tower recommender."""

import math
import os
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .checked_config import read_config
from .columns import Column, check_columns, column_from_dict, history_of, near

MIXERS = ("mamba", "ssd", "attention")
POOLINGS = ("cls", "last", "mean")
NUMERIC_EMBEDDINGS = ("linear", "ple", "periodic")
NORM_POSITIONS = ("pre", "post", "sum")
FEED_FORWARDS = ("reglu", "relu", "gelu")
TOWERS = ("user", "item")

# Keys that Transformers itself writes into or reads from a config, beside its dataclass fields.
_TRANSFORMERS_KEYS = (
    "attn_implementation", "auto_map", "custom_pipelines", "experts_implementation", "model_type",
    "name_or_path", "num_labels", "output_attentions", "per_layer_config", "torch_dtype",
    "trust_remote_code",
)  # fmt: skip
_POSITIVE = (
    "hidden_size", "state_size", "conv_kernel", "expand", "n_frequencies", "projection_size",
    "frequency_scale", "layer_norm_eps", "time_step_min", "time_step_max", "time_step_floor",
)  # fmt: skip
_NOT_NEGATIVE = (
    "num_hidden_layers", "time_step_rank", "ssd_head_size", "num_attention_heads",
    "intermediate_size", "head_hidden_size", "max_positions", "initializer_range",
)  # fmt: skip
_RATES = (
    "attention_dropout", "feed_forward_dropout", "residual_dropout", "token_dropout",
    "unseen_probability",
)  # fmt: skip


@strict
class FTMambaArchitecture(PreTrainedConfig):
    """Sizes and options of a tower; shared by the configs of one tower and of two.

    Attributes:
        hidden_size: width D of a token.
        num_hidden_layers: mixer layers; 0 leaves tokens, pooling and head (an MLP tower).
        mixer: `mamba` (the paper's), `ssd` (Mamba-2: one decay a head, so that a layer is matrix
            products) or `attention` (the FT-Transformer layer).
        state_size: N, numbers of state a channel of a Mamba layer keeps.
        conv_kernel: width of the causal convolution of a Mamba layer, in tokens.
        expand: inner width of a Mamba layer over `hidden_size`.
        time_step_rank: rank of the projection of dt in `mamba`; 0 means ceil(hidden_size / 16).
        time_step_min: smallest dt at initialisation.
        time_step_max: largest dt at initialisation.
        time_step_floor: dt is never initialised below it.
        ssd_head_size: channels a head of `ssd`; 0 means 32, or the largest power of two below it
            that divides expand * hidden_size.
        bidirectional: run a second Mamba mixer over the reversed tokens of each layer.
        pooling: which outputs make the embedding: of the appended `[CLS]` token (`cls`), of the
            last column (`last`), or the mean over the columns (`mean`).
        norm_position: `pre` x + f(norm(x)), `post` x + norm(f(x)), or `sum` norm(x + f(x)), as in
            the first Transformer and Mamba4Rec.
        first_layer_norm: whether the first layer normalises at all; the FT-Transformer does not.
        mixer_residual: whether a mixer's output is added to its input; without, it takes its place.
        mixer_feed_forward: give the layers of `mamba` and `ssd` a feed-forward too.
        causal_attention: no token attends to a later one.
        num_attention_heads: heads of an attention layer; 0 means heads of 32 channels, or the
            next wider ones that divide hidden_size.
        feed_forward: feed-forward of a layer that has one.
        intermediate_size: its hidden width; 0 means int(4 * hidden_size / 3).
        attention_dropout: on attention weights.
        feed_forward_dropout: inside the feed-forward.
        residual_dropout: on what a layer adds to its input.
        token_dropout: on the tokens.
        token_norm: a LayerNorm on the tokens, after their dropout.
        category_bias: add a vector of its own to each `categorical` column's tokens.
        unseen_probability: in training, how often an id is replaced by the unseen id, so that its
            embedding is learned.
        history_start: put a learned token ahead of the events of a history.
        scale_embedding: multiply the tokens of a history's events by sqrt(hidden_size), before
            anything is added, as the Transformer does (Vaswani et al. 2017, section 3.4).
        max_positions: so many learned positions are added to the tokens of a history's events,
            oldest first; 0 means none.
        time_decay: learn for each channel (`ssd`: head) how far the gap ahead of an event of a
            history lengthens dt.
        numeric_embedding: `linear` (the paper), `ple` or `periodic` (Gorishniy et al. 2022).
        n_frequencies: of the periodic embedding.
        frequency_scale: standard deviation of its initial frequencies.
        final_norm: a LayerNorm on the pooled output.
        with_head: whether a head makes the embedding of it; without, it is the embedding.
        head_hidden_size: hidden width of the head; 0 makes the head one linear map.
        projection_size: width of the embedding, the same in both towers.
        normalize_embeddings: scale embeddings to length 1.
        initializer_range: if positive, linear maps and tables start from N(0, its square) and
            their biases at 0 (Mamba4Rec).
        layer_norm_eps: of every LayerNorm.
    """

    # `save_pretrained` names this class in `auto_map`, so that `AutoConfig` finds it.
    _auto_class = "AutoConfig"

    hidden_size: int = 64
    num_hidden_layers: int = 2
    mixer: str = "mamba"
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: int = 0
    time_step_min: float | int = 0.001
    time_step_max: float | int = 0.1
    time_step_floor: float | int = 1e-4
    ssd_head_size: int = 0
    bidirectional: bool = False
    pooling: str = "cls"
    norm_position: str = "pre"
    first_layer_norm: bool = True
    mixer_residual: bool = True
    mixer_feed_forward: bool = False
    causal_attention: bool = False
    num_attention_heads: int = 0
    feed_forward: str = "reglu"
    intermediate_size: int = 0
    attention_dropout: float | int = 0.0
    feed_forward_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    token_dropout: float | int = 0.0
    token_norm: bool = False
    category_bias: bool = True
    unseen_probability: float | int = 0.0
    history_start: bool = False
    scale_embedding: bool = False
    max_positions: int = 0
    time_decay: bool = False
    numeric_embedding: str = "linear"
    n_frequencies: int = 48
    frequency_scale: float | int = 0.01
    final_norm: bool = True
    with_head: bool = True
    head_hidden_size: int = 64
    projection_size: int = 64
    normalize_embeddings: bool = False
    initializer_range: float | int = 0.0
    layer_norm_eps: float | int = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        known = [name for name in type(self).__dataclass_fields__ if not name.startswith("_")]
        for key in kwargs:
            if not key.startswith("_") and key not in _TRANSFORMERS_KEYS:
                raise ValueError(
                    f"{type(self).__name__} has no field {key!r}; remove it or correct its name"
                    f"{near(key, known)}"
                )
        super().__post_init__(**kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """Read a `config.json` for `from_pretrained`, every field of it checked."""
        return read_config(
            Path(json_file),
            model_type=cls.model_type,
            shared=_own_fields(FTMambaArchitecture),
            own=_own_fields(cls),
            build=cls,
        )

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

    def validate_choices(self) -> None:
        """Check the fields that name one of a few options."""
        for field, allowed in (
            ("mixer", MIXERS),
            ("pooling", POOLINGS),
            ("norm_position", NORM_POSITIONS),
            ("feed_forward", FEED_FORWARDS),
            ("numeric_embedding", NUMERIC_EMBEDDINGS),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(
                    f"{field} must be one of {', '.join(allowed)}, got {value!r}"
                    f"{near(value, allowed)}"
                )

    def validate_ranges(self) -> None:
        """Check that sizes are positive and rates lie in [0, 1)."""
        for field in _POSITIVE:
            _check(field, getattr(self, field), ok=getattr(self, field) > 0, rule="> 0")
        for field in _NOT_NEGATIVE:
            _check(field, getattr(self, field), ok=getattr(self, field) >= 0, rule=">= 0")
        for field in _RATES:
            _check(field, getattr(self, field), ok=0 <= getattr(self, field) < 1, rule="in [0, 1)")

    def validate_head(self) -> None:
        """Check that without a head the embedding has the width of the tokens."""
        if not self.with_head and self.projection_size != self.hidden_size:
            raise ValueError(
                f"projection_size must equal hidden_size where with_head is False, got "
                f"{self.projection_size} and {self.hidden_size}; change one of them"
            )

    def validate_combinations(self) -> None:
        """Check fields against each other."""
        if self.time_step_min > self.time_step_max:
            raise ValueError(
                f"time_step_min must be <= time_step_max, got {self.time_step_min} > "
                f"{self.time_step_max}; swap them"
            )
        if self.num_hidden_layers == 0 and self.pooling != "mean":
            raise ValueError(
                f"pooling must be 'mean' where num_hidden_layers is 0, got {self.pooling!r}: "
                "without layers no token has seen the others"
            )
        if self.mixer == "ssd" and self.inner_size % (self.ssd_head_size or 1):
            raise ValueError(
                f"ssd_head_size must divide expand * hidden_size, got {self.ssd_head_size} and "
                f"{self.inner_size}; change one of them or set 0 to have it chosen"
            )
        if self.mixer == "attention" and self.hidden_size % self.n_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} "
                f"and {self.num_attention_heads}; change one of them or set 0 to have it chosen"
            )
        if self.mixer == "attention" and self.bidirectional:
            raise ValueError(
                "bidirectional must be False with mixer 'attention', which sees both directions "
                "already; remove it or choose mixer 'mamba' or 'ssd'"
            )


@strict
class FTMambaTowerConfig(FTMambaArchitecture):
    """Configuration of one tower: its columns and its architecture.

    Attributes:
        columns: dictionaries of `Column`, in the order of the tokens.
    """

    model_type = "ftmamba_tower"

    columns: list[dict[str, Any]] | None = None

    def validate_columns(self) -> None:
        """Check every column and that no name occurs twice."""
        check_columns(self.parsed_columns(), "tower")

    def validate_history(self) -> None:
        """Check what a history asks of the other fields."""
        if (history := history_of(self.parsed_columns())) is None:
            return
        attention = self.mixer == "attention"
        if self.bidirectional or (attention and not self.causal_attention):
            remedy = "set causal_attention" if attention else "set bidirectional to False"
            raise ValueError(
                f"column {history.name!r}: a history needs layers that read from left to right; "
                f"{remedy}, or remove the column"
            )
        if self.time_decay and (attention or "gap" not in history.event_features):
            raise ValueError(
                f"time_decay needs mixer 'mamba' or 'ssd' and the event feature 'gap', got mixer "
                f"{self.mixer!r} and event_features {list(history.event_features)} of column "
                f"{history.name!r}; change them or remove time_decay"
            )
        if self.max_positions and not 0 < history.max_length <= self.max_positions:
            raise ValueError(
                f"column {history.name!r}: max_length must be in 1..max_positions, got "
                f"{history.max_length} of {self.max_positions}; change one of them"
            )

    @property
    def decays_with_time(self) -> bool:
        """Whether the layers have a factor on dt from the gaps between events."""
        return self.time_decay and history_of(self.parsed_columns()) is not None

    def parsed_columns(self) -> list[Column]:
        """Return the columns as objects."""
        return [column_from_dict(column) for column in self.columns or []]


@strict
class FTMambaConfig(FTMambaArchitecture):
    """Configuration of the two-tower recommender.

    The architecture stands here once, for both towers. A section, `user_tower` or `item_tower`,
    holds the tower's `columns` and, if it departs from the shared values, fields of its own:

        FTMambaConfig(
            user_tower={"columns": [{"name": "age", "kind": "numeric"}]},
            item_tower={"columns": [...], "num_hidden_layers": 4},
            hidden_size=128,
        )

    Attributes:
        user_tower: section of the user tower.
        item_tower: section of the item tower.
        temperature: initial divisor of the inner product.
        learn_temperature: whether training changes it.
        repeat_bias: learn a number that is added to the inner product of a user and an item of the
            user's history: below zero where people seldom take a thing again.
    """

    model_type = "ftmamba"

    user_tower: dict[str, Any] | None = None
    item_tower: dict[str, Any] | None = None
    temperature: float | int = 1.0
    learn_temperature: bool = False
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
        """Build a config from both towers' columns, fields of their own, and shared fields.

        Raises:
            ValueError: a tower's own fields hold columns too, or a value is wrong.
        """
        return cls(
            user_tower=_section("user", user_tower or {}, user_columns),
            item_tower=_section("item", item_tower or {}, item_columns),
            **architecture,
        )

    def tower(self, name: str) -> FTMambaTowerConfig:
        """Return the config of the `user` or `item` tower, shared values filled in."""
        if name not in TOWERS:
            raise ValueError(f"tower must be one of {', '.join(TOWERS)}, got {name!r}")
        shared = {field: getattr(self, field) for field in _own_fields(FTMambaArchitecture)}
        section = getattr(self, f"{name}_tower") or {}
        return FTMambaTowerConfig(**{**shared, **section})

    def validate_temperature(self) -> None:
        """Check that the temperature is positive."""
        _check("temperature", self.temperature, ok=self.temperature > 0, rule="> 0")

    def validate_repeat_bias(self) -> None:
        """Check that there are histories where a bias is learned for what is in them."""
        if self.repeat_bias and history_of(self.tower("user").parsed_columns()) is None:
            raise ValueError(
                "repeat_bias needs a column of kind 'history' in user_tower, which says what a "
                "user took before; add one or remove repeat_bias"
            )

    def validate_towers(self) -> None:
        """Check both sections; an error names the tower."""
        for name in TOWERS:
            section = getattr(self, f"{name}_tower") or {}
            if "projection_size" in section:
                raise ValueError(
                    f"{name}_tower sets projection_size; both towers need the same, so set it "
                    "once, beside the sections"
                )
            try:
                columns = self.tower(name).parsed_columns()
            except Exception as error:
                raise ValueError(f"{name}_tower: {error}") from error
            if name == "item" and (history := history_of(columns)) is not None:
                raise ValueError(
                    f"item_tower: column {history.name!r} is a history, which users alone have; "
                    "move it to user_tower or remove it"
                )


def _own_fields(config: type[FTMambaArchitecture]) -> list[str]:
    """Return the fields that a class itself declares."""
    return [field for field in config.__annotations__ if not field.startswith("_")]


def _section(name: str, fields: dict[str, Any], columns: list[dict[str, Any]]) -> dict[str, Any]:
    if "columns" in fields:
        raise ValueError(
            f"{name}_tower holds columns beside {name}_columns; give them once, as {name}_columns"
        )
    return {**fields, "columns": columns}


def _check(field: str, value: object, *, ok: bool, rule: str) -> None:
    if not ok:
        raise ValueError(f"{field} must be {rule}, got {value!r}")
