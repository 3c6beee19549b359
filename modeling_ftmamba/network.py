"""The network: tokens, layers, one tower, two towers, and users that are kept fresh.

`modeling_ftmamba` makes Transformers' models of it, which train, save and load. Recommending needs
no more than this, and starts in half the time, for Transformers' models import much.

Shapes: B batch, U users, I items, L tokens, T events, S slots (T + 1), D hidden, E embedding
(`projection_size`), F event features, P numeric columns, C categorical columns, M members of sets,
W slots of dense columns, V width of one of them, R frequencies, K components of a number.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import logging

from .configuration_ftmamba import (
    GAP,
    HISTORY,
    N_SPECIAL_IDS,
    PADDING_ID,
    UNSEEN_ID,
    Column,
    FTMambaConfig,
    FTMambaTowerConfig,
    columns_of_tensor,
    history_of,
    near,
)
from .mixers import (
    PLAIN_SCANS,
    AttentionMixer,
    FeedForward,
    MambaMixer,
    MixerState,
    Part,
    SSDMixer,
)
from .user_state import NO_TIME, UserState, gaps_of

logger = logging.get_logger(__name__)

MIXER_OF_NAME: dict[str, type[Any]] = {
    "mamba": MambaMixer, "ssd": SSDMixer, "attention": AttentionMixer,
}  # fmt: skip
# Numbers of a layer's state that are computed at a time, for some users and tokens: a megabyte, to
# stay in the cache. Of long histories at least so many tokens, for each costs a step.
_NUMBERS_AT_A_TIME = 2**18
_LEAST_TOKENS_AT_A_TIME = 8
MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class TowerInputs:
    """A batch of encoded records, with a history behind each; see `configuration_ftmamba`."""

    numeric: Tensor | None = None  # float (B, P); NaN means missing
    category_ids: Tensor | None = None  # int64 (B, C)
    set_ids: Tensor | None = None  # int64 (B, M), padded with 0
    dense: Tensor | None = None  # float (B, W); NaN means missing
    # float (B, T, E), the item tower's embeddings of each user's events, oldest first, padded on
    # the right; None means no events.
    history: Tensor | None = None
    history_lengths: Tensor | None = None  # int64 (B,), each user's events; None means T of all
    # float (B, T, F), what the history's column names; NaN means missing, None all missing.
    event_features: Tensor | None = None

    @classmethod
    def of(cls, tower: str, batch: Mapping[str, Tensor | None]) -> "TowerInputs":
        """Take a tower's tensors, named `user_numeric` and so on; refuse any other name."""
        names = {f"{tower}_{field.name}": field.name for field in fields(cls)}
        for key in batch:
            if key not in names:
                raise TypeError(f"the {tower} tower reads no {key!r}{near(key, names)}")
        return cls(**{names[key]: tensor for key, tensor in batch.items()})


class TokenRows(NamedTuple):
    """The tokens of a batch."""

    hidden: Tensor  # (B, L, D), padded on the right
    lengths: Tensor | None = None  # tokens of each row (B,); None means L in all
    gaps: Tensor | None = None  # log(1 + seconds) ahead of each token (B, L), if the scan reads it


def _init_uniform(fan: int, *parameters: Tensor) -> None:
    """Draw from +-1 / sqrt(fan) (Gorishniy et al. 2021, appendix)."""
    for parameter in parameters:
        init.uniform_(parameter, -(fan**-0.5), fan**-0.5)


def _init_vector(parameter: Tensor, initializer_range: float) -> None:
    """Draw rows of tokens as `_init_uniform` does or, if given, from N(0, range^2)."""
    if initializer_range:
        init.normal_(parameter, std=initializer_range)
    else:
        _init_uniform(parameter.shape[-1], parameter)


def _init_table(table: Tensor, bias: Tensor | None, first_C: Tensor, std: float) -> None:
    """Draw a table and its bias; the special ids start at zero: untrained, they have no effect."""
    weight, bound = torch.empty(table.shape), table.shape[1] ** -0.5
    weight = weight.normal_(std=std) if std else weight.uniform_(-bound, bound)
    weight[(first_C[:, None] + torch.arange(N_SPECIAL_IDS)).flatten()] = 0.0
    init.copy_(table, weight)
    if bias is not None:
        init.zeros_(bias) if std else _init_uniform(bias.shape[-1], bias)


class NumericEmbedding(nn.Module):
    """A number of each column as a token; missing ones never arrive here.

    `linear`: x_j w_j + b_j (FT-Mamba, section 3; FT-Transformer, equation 1).
    `ple`: component k is clamp((x - b_{k-1}) / (b_k - b_{k-1}), 0, 1), the first not clamped below,
        the last not above, then a linear map of each column (Gorishniy et al. 2022, section 3.2). A
        column without fitted edges has one bin from 0 to 1, which leaves x as it is.
    `periodic`: ReLU(Linear([cos 2 pi c x, sin 2 pi c x])) (there, section 3.3).
    """

    start: Tensor
    slope: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.kind, self.frequency_scale = config.numeric_embedding, config.frequency_scale
        n_columns, n_components = len(columns), tuple[int, ...]()
        if self.kind == "ple":
            self.edges = [column.edges or (0.0, 1.0) for column in columns]
            n_components = (max(map(len, self.edges)) - 1,)
            for name in ("start", "slope", "lowest", "highest"):
                self.register_buffer(name, torch.empty(n_columns, *n_components))
        elif self.kind == "periodic":
            n_components = (2 * config.n_frequencies,)
            self.frequency = nn.Parameter(torch.empty(n_columns, config.n_frequencies))
        self.weight = nn.Parameter(torch.empty(n_columns, *n_components, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(n_columns, config.hidden_size))

    def reset_parameters(self) -> None:
        """Draw weights, biases and frequencies, and write the bins of the config into buffers."""
        fan = self.weight.shape[1 if self.kind == "periodic" else -1]
        _init_uniform(fan, self.weight, self.bias)
        if self.kind == "periodic":
            init.normal_(self.frequency, std=self.frequency_scale)
        if self.kind != "ple":
            return
        bins = torch.zeros(4, *self.start.shape, dtype=torch.float64)
        bins[2, :, 0] = -math.inf
        for row, edges in enumerate(self.edges):
            edge_K = torch.tensor(edges, dtype=torch.float64)
            n_bins = len(edges) - 1
            bins[0, row, :n_bins] = edge_K[:-1]
            bins[1, row, :n_bins] = 1 / edge_K.diff()
            bins[3, row, : n_bins - 1] = 1.0
            bins[3, row, n_bins - 1] = math.inf
        buffers = self.start, self.slope, self.lowest, self.highest
        for buffer, values in zip(buffers, bins, strict=True):
            init.copy_(buffer, values)

    def forward(self, x_BP: Tensor) -> Tensor:
        """Return the tokens (B, P, D)."""
        if self.kind == "linear":
            return x_BP[..., None] * self.weight + self.bias
        if self.kind == "ple":
            x_BPK = (x_BP[..., None] - self.start) * self.slope
            x_BPK = torch.minimum(torch.maximum(x_BPK, self.lowest), self.highest)
        else:
            angle_BPR = 2 * math.pi * self.frequency * x_BP[..., None]
            x_BPK = torch.cat([torch.cos(angle_BPR), torch.sin(angle_BPR)], -1)
        # Not einsum, whose gradient of the weight is transposed in memory, which DDP has to copy.
        tokens_BPD = torch.bmm(x_BPK.transpose(0, 1), self.weight).transpose(0, 1) + self.bias
        return torch.relu(tokens_BPD) if self.kind == "periodic" else tokens_BPD


class NumericTokens(nn.Module):
    """Tokens of the `numeric` columns; a missing value adds a vector of its own to the mean's."""

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.embedding = NumericEmbedding(columns, config)
        self.missing = nn.Parameter(torch.empty(len(columns), config.hidden_size))

    def reset_parameters(self) -> None:
        """Let a missing value have no effect before training."""
        init.zeros_(self.missing)

    def forward(self, numeric_BP: Tensor) -> Tensor:
        """Return the tokens (B, P, D); NaN means missing."""
        missing_BP = numeric_BP.isnan()
        tokens_BPD = self.embedding(numeric_BP.masked_fill(missing_BP, 0).to(self.missing.dtype))
        return tokens_BPD + missing_BP[..., None] * self.missing


class CategoricalTokens(nn.Module):
    """W_j[x_j] [+ b_j] for every `categorical` column; the tables lie in one, end to end."""

    offsets: Tensor

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.sizes = [column.vocabulary_size for column in columns]
        self.unseen_probability = config.unseen_probability
        self.initializer_range = config.initializer_range
        self.table = nn.Embedding(sum(self.sizes), config.hidden_size)
        bias = torch.empty(len(columns), config.hidden_size)
        self.bias = nn.Parameter(bias) if config.category_bias else None
        self.register_buffer("offsets", torch.empty(len(columns), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Draw the table and biases, and write each column's first row in the table."""
        first_C = self.first_rows()
        init.copy_(self.offsets, first_C)
        _init_table(self.table.weight, self.bias, first_C, self.initializer_range)

    def first_rows(self) -> Tensor:
        """Return each column's first row in the table (C,), which `offsets` holds."""
        size_C = torch.tensor(self.sizes)
        return size_C.cumsum(0) - size_C

    def forward(self, ids_BC: Tensor) -> Tensor:
        """Return the tokens (B, C, D)."""
        tokens_BCD = self.table(_hide(self, ids_BC) + self.offsets)
        return tokens_BCD if self.bias is None else tokens_BCD + self.bias


class SetTokens(nn.Module):
    """The mean of a set's embeddings, padding left out; an empty set is the bias alone."""

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.widths = [column.max_length for column in columns]
        self.unseen_probability = config.unseen_probability
        self.initializer_range = config.initializer_range
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(column.vocabulary_size, size, mode="mean", padding_idx=PADDING_ID)
            for column in columns
        )
        self.bias = nn.Parameter(torch.empty(len(columns), size))

    def reset_parameters(self) -> None:
        """Draw the tables and biases."""
        for table in self.tables:
            assert isinstance(table.weight, Tensor)
            _init_table(table.weight, self.bias, torch.zeros(1).long(), self.initializer_range)

    def forward(self, ids_BM: Tensor) -> Tensor:
        """Return the tokens (B, columns, D)."""
        sets = _hide(self, ids_BM).split(self.widths, -1)
        means = [table(ids) for table, ids in zip(self.tables, sets, strict=True)]
        return torch.stack(means, 1) + self.bias


def _hide(tokens: Any, ids: Tensor) -> Tensor:
    """Replace ids by the unseen id in training, each with the configured probability."""
    if not tokens.training or not tokens.unseen_probability:
        return ids
    hidden = torch.rand(ids.shape, device=ids.device) < tokens.unseen_probability
    return ids.masked_fill(hidden & (ids != PADDING_ID), UNSEEN_ID)


class DenseTokens(nn.Module):
    """A linear map for every `timestamp` and `vector` column; a missing one has its own vector."""

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.widths = [column.dimension for column in columns]
        self.maps = nn.ModuleList(nn.Linear(width, config.hidden_size) for width in self.widths)
        self.missing = nn.Parameter(torch.empty(len(columns), config.hidden_size))

    def reset_parameters(self) -> None:
        """Let a missing value have no effect before training."""
        init.zeros_(self.missing)

    def forward(self, dense_BW: Tensor) -> Tensor:
        """Return the tokens (B, columns, D); NaN in a column's slots means missing."""
        tokens, missing = [], []
        for linear, dense_BV in zip(self.maps, dense_BW.split(self.widths, -1), strict=True):
            missing_B1 = dense_BV.isnan().any(-1, keepdim=True)
            tokens.append(linear(dense_BV.masked_fill(missing_B1, 0).to(self.missing.dtype)))
            missing.append(missing_B1)
        return torch.stack(tokens, 1) + torch.stack(missing, 1) * self.missing


TOKENS_OF_TENSOR: dict[str, type[Any]] = {
    "numeric": NumericTokens, "category_ids": CategoricalTokens, "set_ids": SetTokens,
    "dense": DenseTokens,
}  # fmt: skip


class HistoryTokens(nn.Module):
    """A token an event: its item's embedding, what stands beside it, and its position.

    The embeddings are those that the item tower has made of the items, so that a history shares its
    table and its content, and an item that no training has seen still has an effect.
    """

    def __init__(self, column: Column, config: FTMambaTowerConfig) -> None:
        super().__init__()
        size, n_features = config.hidden_size, len(column.event_features)
        self.initializer_range = config.initializer_range
        self.factor = math.sqrt(size) if config.scale_embedding else 1.0
        self.features = column.event_features
        self.scales = column.event_scales
        self.embedding_size = config.projection_size
        self.projection: nn.Module = nn.Identity()
        if config.projection_size != size:
            self.projection = nn.Linear(config.projection_size, size, bias=False)
        # A missing feature counts as 0, plus a vector of its own.
        self.feature_weight = nn.Parameter(torch.empty(n_features, size)) if n_features else None
        self.missing = nn.Parameter(torch.empty(n_features, size)) if n_features else None
        self.start = nn.Parameter(torch.empty(size)) if config.history_start else None
        n_positions = config.max_positions
        self.positions = nn.Embedding(n_positions, size) if n_positions else None
        self.gap_slot = self.features.index(GAP) if config.decays_with_time else None

    def reset_parameters(self) -> None:
        """Let features have no effect before training: gaps are far from standard."""
        if self.feature_weight is not None and self.missing is not None:
            init.zeros_(self.feature_weight)
            init.zeros_(self.missing)
        if self.start is not None:
            _init_vector(self.start, self.initializer_range)
        if self.positions is not None:
            _init_vector(self.positions.weight, self.initializer_range)

    def forward(self, inputs: TowerInputs) -> tuple[Tensor, Tensor | None]:
        """Return the tokens (B, T, D) of the events and, if the scan reads them, gaps (B, T)."""
        history_BTE, given_BTF = inputs.history, inputs.event_features
        assert history_BTE is not None
        if inputs.history_lengths is not None:  # what stands in the padding may not be finite
            beyond_BT1 = (_index(history_BTE) >= inputs.history_lengths[:, None])[..., None]
            history_BTE = history_BTE.masked_fill(beyond_BT1, 0)
            given_BTF = None if given_BTF is None else given_BTF.masked_fill(beyond_BT1, 0)
        tokens_BTD: Tensor = self.projection(history_BTE)
        if self.factor != 1:
            tokens_BTD = tokens_BTD * self.factor
        if self.feature_weight is not None and self.missing is not None:
            if given_BTF is None:
                tokens_BTD = tokens_BTD + self.missing.sum(0)
            else:
                missing_BTF = given_BTF.isnan()
                values_BTF = self._scaled(given_BTF).masked_fill(missing_BTF, 0)
                tokens_BTD = tokens_BTD + values_BTF.to(tokens_BTD.dtype) @ self.feature_weight
                tokens_BTD = tokens_BTD + missing_BTF.to(tokens_BTD.dtype) @ self.missing
        if self.positions is not None:
            n_events, most = tokens_BTD.shape[1], self.positions.num_embeddings
            if n_events > most:
                rule = f"a history of {n_events} events is longer than max_positions, {most}"
                raise ValueError(f"{rule}; give the newest {most}, or train with more positions")
            tokens_BTD = tokens_BTD + self.positions.weight[:n_events]
        if self.gap_slot is None or given_BTF is None:
            return tokens_BTD, None
        return tokens_BTD, given_BTF[..., self.gap_slot].nan_to_num(0)

    def _scaled(self, features_BTF: Tensor) -> Tensor:
        """Return the features standardised, in 32 bits at least, as the column's scales say."""
        if not self.scales:
            return features_BTF
        wide_BTF = features_BTF.to(torch.promote_types(features_BTF.dtype, torch.float32))
        # Numbers, not a tensor: a buffer would be rounded with a model that is put in 16 bits.
        pairs = zip(wide_BTF.unbind(-1), self.scales, strict=True)
        return torch.stack([(x_BT - mean) / deviation for x_BT, (mean, deviation) in pairs], -1)

    def checked(self, inputs: TowerInputs) -> TowerInputs:
        """Return inputs whose lengths are None where all rows are full; check that they fit."""
        history, lengths, features = inputs.history, inputs.history_lengths, inputs.event_features
        assert history is not None
        size = self.embedding_size
        if history.ndim != 3 or history.shape[2] != size or not history.is_floating_point():
            rule = f"a history must be floats of shape (users, events, {size})"
            raise ValueError(f"{rule}, got {history.dtype} of {tuple(history.shape)}")
        rows, n_events, _ = history.shape
        shape = (rows, n_events, len(self.features))
        if features is not None and features.shape != shape:
            raise ValueError(f"event_features must have shape {shape}, got {tuple(features.shape)}")
        if lengths is None:
            return inputs
        floats = lengths.is_floating_point() or lengths.dtype is torch.bool
        if floats or lengths.shape != (rows,):
            rule = f"history_lengths must be whole numbers of shape ({rows},)"
            raise ValueError(f"{rule}, got {lengths.dtype} of {tuple(lengths.shape)}")
        # Not on a GPU, which would have to be waited for.
        if not lengths.is_cpu or torch.compiler.is_compiling():
            return inputs
        wrong = ((lengths < 0) | (lengths > n_events)).nonzero().flatten().tolist()
        if wrong:
            got = f"{int(lengths[wrong[0]])} in row {wrong[0]}"
            raise ValueError(f"history_lengths must be in 0..{n_events}, the width, got {got}")
        full = bool((lengths == n_events).all())
        return replace(inputs, history_lengths=None) if full else inputs


class FeatureTokenizer(nn.Module):
    """Turn a record into tokens in the order of its columns, then its events, `[CLS]` last."""

    def __init__(self, config: FTMambaTowerConfig) -> None:
        super().__init__()
        parsed = config.parsed_columns()
        columns = [column for column in parsed if column.kind != HISTORY]
        groups = {name: columns_of_tensor(columns, name) for name in TOKENS_OF_TENSOR}
        self.columns = {name: group for name, group in groups.items() if group}
        self.kinds = nn.ModuleDict(
            {name: TOKENS_OF_TENSOR[name](group, config) for name, group in self.columns.items()}
        )
        arrival = [column.name for group in self.columns.values() for column in group]
        self.order = [arrival.index(column.name) for column in columns]
        # NOTE[DIFF]: the paper's [CLS] is a numeric token with input 1, w + b; one vector is both.
        with_cls = config.pooling == "cls" or not parsed
        self.cls = nn.Parameter(torch.empty(config.hidden_size)) if with_cls else None
        self.both_ends = config.bidirectional
        column = history_of(parsed)
        self.history = None if column is None else HistoryTokens(column, config)
        self.initializer_range = config.initializer_range
        self.dropout = nn.Dropout(config.token_dropout)
        size, eps = config.hidden_size, config.layer_norm_eps
        self.norm = nn.LayerNorm(size, eps) if config.token_norm else None

    def reset_parameters(self) -> None:
        """Draw the `[CLS]` token."""
        if self.cls is not None:
            _init_vector(self.cls, self.initializer_range)

    def forward(self, inputs: TowerInputs, n_rows: int) -> TokenRows:
        """Return all tokens of inputs that were checked.

        A bidirectional tower has a `[CLS]` at both ends: read backwards, the first is the last.
        """
        rows = self.ahead_of_cls(inputs, n_rows)
        if self.cls is not None:
            hidden_BLD, lengths, gaps = rows
            cls_B1D = self.cls.expand(n_rows, 1, -1)
            ahead = [cls_B1D] if self.both_ends else []
            hidden_BLD = torch.cat([*ahead, hidden_BLD, cls_B1D], 1)
            gaps = None if gaps is None else F.pad(gaps, (0, 1))
            if lengths is not None:
                here_BL = _index(hidden_BLD) == lengths[:, None]
                hidden_BLD = torch.where(here_BL[..., None], self.cls, hidden_BLD)
                gaps = None if gaps is None else gaps.masked_fill(here_BL, 0)
                lengths = lengths + 1
            rows = TokenRows(hidden_BLD, lengths, gaps)
        return rows._replace(hidden=self.finish(rows.hidden))

    def ahead_of_cls(self, inputs: TowerInputs, n_rows: int) -> TokenRows:
        """Return the tokens of records and events alone, before dropout and norm."""
        tokens = [self.kinds[name](getattr(inputs, name)) for name in self.columns]
        if self.order != sorted(self.order):
            parts = torch.cat(tokens, 1).unbind(1)
            tokens = [torch.stack([parts[index] for index in self.order], 1)]
        if self.history is not None and self.history.start is not None:
            tokens.append(self.history.start.expand(n_rows, 1, -1))
        n_ahead = sum(token.shape[1] for token in tokens)
        lengths, gaps = inputs.history_lengths, None
        if self.history is not None and inputs.history is not None:
            events_BTD, gaps = self.history(inputs)
            tokens.append(events_BTD)
        if not tokens:
            own = next(self.parameters())
            return TokenRows(own.new_empty(n_rows, 0, own.shape[-1]))
        return TokenRows(
            torch.cat(tokens, 1) if len(tokens) > 1 else tokens[0],
            None if lengths is None else n_ahead + lengths,
            None if gaps is None else F.pad(gaps, (n_ahead, 0)),
        )

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply dropout and, if there is one, the norm to tokens (..., D)."""
        dropped: Tensor = self.dropout(tokens)
        return dropped if self.norm is None else self.norm(dropped)


class FTMambaLayer(nn.Module):
    """One residual layer: a mixer, then for attention, or if asked for, a feed-forward."""

    # Version of the methods and attributes of layers and their parts that kernels rely on.
    kernel_contract = 1

    def __init__(self, config: FTMambaTowerConfig, index: int) -> None:
        super().__init__()
        feeds = config.mixer == "attention" or config.mixer_feed_forward
        mixer_class = MIXER_OF_NAME[config.mixer]
        self.mixer = mixer_class(config)
        self.reverse_mixer = mixer_class(config) if config.bidirectional else None
        self.feed_forward = FeedForward(config) if feeds else None
        size, eps = config.hidden_size, config.layer_norm_eps
        normalised = index > 0 or config.first_layer_norm
        self.mixer_norm = nn.LayerNorm(size, eps) if normalised else nn.Identity()
        self.feed_forward_norm = nn.LayerNorm(size, eps) if feeds else None
        self.norm_position = config.norm_position
        self.residual = config.mixer_residual
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the layer's tokens (B, L, D); the gaps are for a scan that decays with time."""
        normed_BLD = self.normed(hidden_BLD)
        mixed_BLD = self.mixer(normed_BLD, gaps_BL)
        if self.reverse_mixer is not None:
            mixed_BLD = mixed_BLD + self.reverse_mixer(normed_BLD.flip(1)).flip(1)
        return self.finish(hidden_BLD, mixed_BLD)

    def forward_last(self, hidden_BLD: Tensor, gaps_BL: Tensor | None = None) -> Tensor:
        """Return the last token (B, D), equal to `forward(...)[:, -1]`; not if bidirectional."""
        mixed_BD = self.mixer.forward_last(self.normed(hidden_BLD), gaps_BL)
        return self.finish(hidden_BLD[:, -1], mixed_BD)

    def advance(
        self, hidden_BLD: Tensor, state: MixerState, part: Part
    ) -> tuple[Tensor, MixerState]:
        """Return more tokens (B, L, D), after those that left the state, and the state."""
        mixed_BLD, state = self.mixer.advance(self.normed(hidden_BLD), state, part)
        return self.finish(hidden_BLD, mixed_BLD), state

    def normed(self, hidden: Tensor) -> Tensor:
        """Return what the mixer reads of tokens (..., D)."""
        normed: Tensor = self.mixer_norm(hidden) if self.norm_position == "pre" else hidden
        return normed

    def finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Return the layer's output for tokens (..., D) and what the mixer made of them."""
        return self.feed(self.joined(hidden if self.residual else None, mixed, self.mixer_norm))

    def feed(self, hidden: Tensor) -> Tensor:
        """Return tokens (..., D) after the feed-forward, if the layer has one."""
        if self.feed_forward is None or self.feed_forward_norm is None:
            return hidden
        read = self.feed_forward_norm(hidden) if self.norm_position == "pre" else hidden
        return self.joined(hidden, self.feed_forward(read), self.feed_forward_norm)

    def joined(self, hidden: Tensor | None, added: Tensor, norm: nn.Module) -> Tensor:
        """Return hidden, where it is given, plus what was added, normalised as configured."""
        added = self.dropout(norm(added) if self.norm_position == "post" else added)
        total = added if hidden is None else hidden + added
        return norm(total) if self.norm_position == "sum" else total


@functools.cache
def _attach_functions() -> tuple[Callable[[nn.Module, str], None], ...]:
    """Load the functions of installed packages that attach kernels."""
    functions = []
    for entry in entry_points(group="ftmamba.kernels"):
        try:
            functions.append(entry.load())
        except ImportError as error:
            logger.warning_once(f"{entry.value} does not import ({error}); plain torch runs")
    return tuple(functions)


def attach_kernels(network: nn.Module, scan: str = "auto") -> None:
    """Let installed packages, such as `ftmamba`, bind faster forwards of the same values.

    The scan is `auto`, `sequential` or `reference`, both in plain torch, or a name of a package's;
    a name that is unknown, or has no effect on the network, is refused.
    """
    functions = _attach_functions()
    known = ("auto", *PLAIN_SCANS)
    if scan not in known and not functions:
        rule = f"scan must be one of {', '.join(known)}, or ftmamba be installed"
        raise ValueError(f"{rule}, got {scan!r}{near(scan, known)}")
    mixers = [module for module in network.modules() if isinstance(module, MambaMixer)]
    if scan == "reference" and not mixers:
        raise ValueError("scan 'reference' has no effect here: no layer has mixer 'mamba'")
    for attach in functions:
        attach(network, scan)
    for mixer in mixers:
        mixer.plain_scan = scan if scan in PLAIN_SCANS else "sequential"


class ScanChoice(nn.Module):
    """What can be asked of every network."""

    def set_scan(self, name: str) -> None:
        """Choose the implementation of the selective scan; see `attach_kernels`."""
        attach_kernels(self, name)

    @property
    def scan_implementation(self) -> str:
        """Name of the scan in use on the model's device, or `none` where no layer scans."""
        mixers = [module for module in self.modules() if isinstance(module, MambaMixer)]
        return ", ".join(sorted({mixer.scan_name() for mixer in mixers})) or "none"

    def check_in_memory(self) -> None:
        """Raise ValueError where weights are offloaded, which hooks bring back for some calls."""
        if any(weight.is_meta for weight in self.parameters()):
            raise ValueError("weights are not in memory (device_map?); load all of it on a device")

    def check_weights(self) -> None:
        """Raise ValueError where a weight is not finite, or larger than any training makes it."""
        for name, weight in self.named_parameters():
            if weight.is_floating_point() and weight.numel() and not weight.is_meta:
                low, high = map(float, weight.detach().float().aminmax())
                most = 30.0 if name == "log_temperature" else MOST_WEIGHT
                if not -most <= low <= high <= most:
                    problem = f"{name} holds weights from {low:g} to {high:g}, beyond {most:g}"
                    raise ValueError(f"{problem}: training diverged or the file is damaged")


class TowerNetwork(ScanChoice):
    """One tower: tokens, layers, pooling, norm, head; and the states of users, without gradients.

    What a tower with a scan keeps of a user's past is a `UserState`. It is what the full forward
    pass would have there, so embeddings are equal for any split of a history into calls.
    """

    config: Any

    def _build(
        self, config: FTMambaTowerConfig, name: str, layer_class: type[FTMambaLayer]
    ) -> None:
        """Make the modules, for the constructor of a class that is a tower, named in errors."""
        self.name = name
        self.tokenizer = FeatureTokenizer(config)
        n_layers, size = config.num_hidden_layers, config.hidden_size
        self.layers = nn.ModuleList(layer_class(config, index) for index in range(n_layers))
        norm = nn.LayerNorm(size, config.layer_norm_eps) if config.final_norm else nn.Identity()
        self.norm: nn.Module = norm
        self.head: nn.Module = nn.Identity()
        first, last = config.head_hidden_size, config.projection_size
        if config.with_head and first:
            self.head = nn.Sequential(nn.Linear(size, first), nn.GELU(), nn.Linear(first, last))
        elif config.with_head:
            self.head = nn.Linear(size, last)

    @property
    def reads_before_events(self) -> bool:
        """Whether a user without events has any token: of a column, or the start of a history."""
        history = self.tokenizer.history
        starts = history is not None and history.start is not None
        return bool(self.tokenizer.columns) or starts

    def encode(self, inputs: TowerInputs) -> Tensor:
        """Embed encoded records (B, E); a tensor that does not fit the columns is refused."""
        return self.embedding_of(self.pooled(inputs))

    def pooled(self, inputs: TowerInputs) -> Tensor:
        """Return the pooled outputs (B, D); zeros for a row without any token."""
        return self.pool(self.tokenizer(*self._checked(inputs)))

    def positions(self, inputs: TowerInputs) -> Tensor:
        """Embed each user as of every event (B, S, E): slot t is `encode` of the first t events.

        The slots beyond a row's own events are to be ignored.
        """
        self._history_tokens("the embeddings of all positions", ("last", "mean"))
        inputs, n_rows = self._checked(inputs)
        assert inputs.history is not None
        n_slots = inputs.history.shape[1] + 1
        hidden_BLD = self._through(self.layers, self.tokenizer(inputs, n_rows))
        if self.config.pooling == "mean":
            hidden_BLD = hidden_BLD.cumsum(1) / (_index(hidden_BLD)[:, None] + 1)
        if hidden_BLD.shape[1] < n_slots:
            hidden_BLD = F.pad(hidden_BLD, (0, 0, 1, 0))
        return self.embedding_of(hidden_BLD[:, -n_slots:])

    def pool(self, rows: TokenRows) -> Tensor:
        """Run the layers; compute the last one at the last token only where that is exact."""
        pooling, bidirectional = self.config.pooling, self.config.bidirectional
        layers: list[Any] = list(self.layers)
        even = rows.lengths is None and rows.hidden.shape[1] > 0
        if layers and even and pooling != "mean" and not bidirectional:
            final = layers.pop()
            last_BD: Tensor = final.forward_last(self._through(layers, rows), rows.gaps)
            return last_BD
        hidden_BLD = self._through(layers, rows)
        if pooling == "mean":
            return _mean(hidden_BLD, rows.lengths)
        if bidirectional:
            return (hidden_BLD[:, 0] + hidden_BLD[:, -1]) / 2
        return _newest(hidden_BLD, rows.lengths, hidden_BLD.new_zeros(()))

    def embedding_of(self, pooled: Tensor) -> Tensor:
        """Return the embeddings (..., E) of pooled outputs (..., D)."""
        embeds: Tensor = self.head(self.norm(pooled))
        return F.normalize(embeds, dim=-1) if self.config.normalize_embeddings else embeds

    def start(self, inputs: TowerInputs, n_rows: int | None = None) -> UserState:
        """Return the state of users, of one or `n_rows` without columns, before any event."""
        self._check_streaming()
        if n_rows is not None:
            inputs = replace(inputs, history=self._no_events(n_rows))
        inputs, n_rows = self._checked(inputs)
        own = next(self.parameters())
        wide = torch.promote_types(own.dtype, torch.float32)
        conv, scan = self._state_shapes(n_rows)
        nothing = UserState(
            own.new_zeros(conv, dtype=wide),
            own.new_zeros(scan, dtype=wide),
            own.new_zeros(n_rows, self.config.hidden_size),
            own.new_zeros(n_rows, dtype=torch.int64),
            own.new_full((n_rows,), NO_TIME, dtype=torch.int64),
        )
        with torch.no_grad():
            tokens_BLD = self.tokenizer.ahead_of_cls(inputs, n_rows).hidden
            read = self._read(nothing, self.tokenizer.finish(tokens_BLD), Part())
        return UserState(*read, nothing.n_events, nothing.last_time)

    def observe(
        self, state: UserState, events: TowerInputs, times: Tensor | None = None
    ) -> UserState:
        """Return the state of users after more events; a user may have none.

        `times`, int64 (B, T), are UTC epoch seconds, negative for none. The feature `gap` is made
        of them; an event older than the one before it is refused. Without them the state forgets
        the time of its last event.
        """
        tokenizer = self._check_streaming()
        events = tokenizer.checked(events)
        history, lengths = events.history, events.history_lengths
        assert history is not None
        self._check_state(state, len(history))
        if history.shape[1] == 0:
            return state
        last_time_B = torch.full_like(state.last_time, NO_TIME)
        with torch.no_grad():
            if times is not None:
                events = _with_gaps(state, events, times, tokenizer.features)
                last_time_B = _newest(times, lengths, state.last_time).clamp(min=NO_TIME)
            if history.dtype is not self._dtype():
                events = replace(events, history=history.to(self._dtype()))
            tokens_BTD, gaps_BT = tokenizer(events)
            read = self._read(state, self.tokenizer.finish(tokens_BTD), Part(lengths, gaps_BT))
        if lengths is not None:
            last_time_B = torch.where(lengths > 0, last_time_B, state.last_time)
        n_more = history.shape[1] if lengths is None else lengths
        return UserState(*read, state.n_events + n_more, last_time_B)

    def embed(self, state: UserState) -> Tensor:
        """Return the embeddings (B, E) of users as of their state: those of `encode`."""
        self._check_streaming()
        self._check_state(state, len(state))
        with torch.no_grad():
            last_BD = state.last
            if self.tokenizer.cls is not None:
                cls_B1D = self.tokenizer.cls.expand(len(state), 1, -1)
                last_BD = self._read(state, self.tokenizer.finish(cls_B1D), Part())[2]
            return self.embedding_of(last_BD.to(self._dtype()))

    def _through(self, layers: Iterable[nn.Module], rows: TokenRows) -> Tensor:
        """Return the tokens (B, L, D) that layers make of tokens."""
        hidden_BLD = rows.hidden
        for layer in layers if hidden_BLD.shape[1] else ():
            hidden_BLD = layer(hidden_BLD, rows.gaps)
        return hidden_BLD

    def _checked(self, inputs: TowerInputs) -> tuple[TowerInputs, int]:
        """Return inputs that fit the columns, an empty history for none, and the number of rows."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            raise ValueError("torch.jit.trace would fix rows and lengths; use torch.export.export")
        if next(self.parameters()).is_meta:
            self.check_in_memory()
        for name in TOKENS_OF_TENSOR:
            columns, tensor = self.tokenizer.columns.get(name, []), getattr(inputs, name)
            width = sum(column.width for column in columns)
            got = None if tensor is None else tuple(tensor.shape)
            if width if got is None else len(got) != 2 or got[1] != width:
                names = ", ".join(column.name for column in columns) or "none"
                rule = f"the {self.name} tower's tensor {name!r} must have shape (records, {width})"
                raise ValueError(f"{rule} for the columns: {names}; got {got}")
        sizes = {name: len(getattr(inputs, name)) for name in self.tokenizer.columns}
        history, lengths = inputs.history, inputs.history_lengths
        if self.tokenizer.history is None:
            if any(x is not None for x in (history, lengths, inputs.event_features)):
                raise ValueError(f"the {self.name} tower has no column of kind 'history', got one")
        else:
            if history is None:
                alone = 1 if lengths is None else len(lengths)
                history = self._no_events(next(iter(sizes.values()), alone))
            sizes["history"] = len(history)
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{self.name} tensors must have one number of records, got {sizes}")
        if self.tokenizer.history is not None:
            inputs = self.tokenizer.history.checked(replace(inputs, history=history))
            assert history is not None
            inputs = replace(inputs, history=history.to(next(self.parameters()).dtype))
        return inputs, next(iter(sizes.values()), 1)

    def _no_events(self, n_rows: int) -> Tensor:
        return next(self.parameters()).new_zeros(n_rows, 0, self.config.projection_size)

    def _history_tokens(self, what: str, poolings: tuple[str, ...]) -> HistoryTokens:
        """Return what makes tokens of events, or raise where `what` cannot be had."""
        if self.tokenizer.history is None:
            raise ValueError(f"{what} need a column of kind 'history' in the {self.name} tower")
        if self.config.pooling not in poolings:
            wanted = " or ".join(map(repr, poolings))
            raise ValueError(f"{what} need pooling {wanted}, got {self.config.pooling!r}")
        return self.tokenizer.history

    def _state_shapes(self, n_rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        config, inner, n_state = self.config, self.config.inner_size, self.config.state_size
        convolved = inner + 2 * n_state if config.mixer == "ssd" else inner
        n_layers, n_kept = config.num_hidden_layers, config.conv_kernel - 1
        return (n_layers, n_rows, convolved, n_kept), (n_layers, n_rows, inner, n_state)

    def _check_streaming(self) -> HistoryTokens:
        history = self._history_tokens("streaming states", ("cls", "last"))
        mixer, n_positions = self.config.mixer, self.config.max_positions
        if mixer == "attention" or n_positions:
            rule = "a state of one size needs mixer 'mamba' or 'ssd' and no max_positions"
            raise ValueError(f"{rule}, got {mixer!r} and {n_positions}")
        if self.training:
            raise RuntimeError("states need a model at rest; call model.eval() first")
        return history

    def _check_state(self, state: UserState, n_rows: int) -> None:
        found = tuple(state.conv.shape), tuple(state.scan.shape)
        if found != (wanted := self._state_shapes(n_rows)):
            rule = f"a state of {n_rows} users of this model has tensors of {wanted}, got {found}"
            raise ValueError(f"{rule}; it is of other users or of another model: start it again")

    def _dtype(self) -> torch.dtype:
        """Return the type of a scanning tower's parameters, sooner than the first of them."""
        first: Any = self.layers[0]
        dtype: torch.dtype = first.mixer.D.dtype
        return dtype

    def _read(
        self, state: UserState, tokens_BLD: Tensor, part: Part
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return conv, scan and last after more tokens, for as many users at a time as fit."""
        n_rows, n_tokens, _ = tokens_BLD.shape
        if n_tokens == 0 or n_rows == 0:
            return state.conv, state.scan, state.last
        numbers = state.scan.shape[2:].numel()
        size = max(1, _NUMBERS_AT_A_TIME // (min(n_tokens, _LEAST_TOKENS_AT_A_TIME) * numbers))
        wide = torch.promote_types(tokens_BLD.dtype, torch.float32)
        conv, scan = (torch.empty_like(x, dtype=wide) for x in (state.conv, state.scan))
        newest = []
        for first in range(0, n_rows, size):
            rows = slice(first, first + size)
            some = Part(*(None if values is None else values[rows] for values in part))
            hidden, states = tokens_BLD[rows], []
            before = (x[:, rows].to(wide).unbind() for x in (state.conv, state.scan))
            for layer, *kept in zip(self.layers, *before, strict=True):
                hidden, after = layer.advance(hidden, MixerState(*kept), some)
                states.append(after)
            torch.stack([after.conv for after in states], out=conv[:, rows])
            torch.stack([after.scan for after in states], out=scan[:, rows])
            newest.append(_newest(hidden, some.lengths, state.last[rows].to(hidden.dtype)))
        return conv, scan, newest[0] if len(newest) == 1 else torch.cat(newest)


def _index(hidden_BLD: Tensor) -> Tensor:
    return torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)


def _newest(x: Tensor, lengths_B: Tensor | None, before: Tensor) -> Tensor:
    """Return each row's own last of (B, T, ...); the one before where a row has none."""
    if x.shape[1] == 0:
        return before.expand(len(x), *x.shape[2:])
    if lengths_B is None:
        return x[:, -1]
    newest = x[torch.arange(len(x), device=x.device), (lengths_B - 1).clamp(min=0)]
    has_some = (lengths_B > 0).view(-1, *[1] * (newest.ndim - 1))
    return torch.where(has_some, newest, before)


def _mean(hidden_BLD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Return the mean over each row's own tokens (B, D), zeros for a row of none."""
    if lengths_B is None:
        return hidden_BLD.mean(1) if hidden_BLD.shape[1] else hidden_BLD.sum(1)
    own_BL = _index(hidden_BLD) < lengths_B[:, None]
    total_BD = hidden_BLD.masked_fill(~own_BL[..., None], 0).sum(1)
    return total_BD / lengths_B.clamp(min=1)[:, None]


def _with_gaps(
    state: UserState, events: TowerInputs, times_BT: Tensor, features: tuple[str, ...]
) -> TowerInputs:
    """Return events with the feature `gap`, if the column names it, made of their times."""
    assert events.history is not None
    rows, n_events, _ = events.history.shape
    if times_BT.shape != (rows, n_events) or times_BT.dtype is not torch.int64:
        rule = f"times must be int64 of shape ({rows}, {n_events}), seconds since 1970 in UTC"
        raise ValueError(f"{rule}, got {times_BT.dtype} of {tuple(times_BT.shape)}")
    gaps_BT = gaps_of(times_BT, state, events.history_lengths)
    if GAP not in features:
        return events
    shape, given_BTF = (rows, n_events, len(features)), events.event_features
    made_BTF = events.history.new_full(shape, torch.nan) if given_BTF is None else given_BTF.clone()
    made_BTF[..., features.index(GAP)] = gaps_BT.to(made_BTF.dtype)
    return replace(events, event_features=made_BTF)


class TwoTowerNetwork(ScanChoice):
    """A user tower and an item tower whose embeddings' inner product is the score.

    Tensors of a batch are keywords: `user_` or `item_` and a name of `TowerInputs`.
    """

    config: Any
    user_tower: TowerNetwork
    item_tower: TowerNetwork

    def _build(self, config: FTMambaConfig, tower_class: type[Any]) -> None:
        self.user_tower = tower_class(config.tower("user"), "user")
        self.item_tower = tower_class(config.tower("item"), "item")
        # Shape (1,): FSDP2 refuses parameters without a dimension.
        self.log_temperature = nn.Parameter(torch.empty(1), requires_grad=config.learn_temperature)
        self.repeat_bias = nn.Parameter(torch.empty(1)) if config.repeat_bias else None

    @property
    def temperature(self) -> Tensor:
        """Divisor of the inner product (1,)."""
        return self.log_temperature.exp()

    def get_user_embeddings(self, **users: Tensor | None) -> Tensor:
        """Embed encoded users and, where the model has a history, their events; return (U, E)."""
        return self.user_tower.encode(TowerInputs.of("user", users))

    def get_user_positions(self, **users: Tensor | None) -> Tensor:
        """Embed users as of every event; return (U, S, E), see `TowerNetwork.positions`."""
        return self.user_tower.positions(TowerInputs.of("user", users))

    def get_item_embeddings(self, **items: Tensor | None) -> Tensor:
        """Embed encoded items; return (I, E)."""
        return self.item_tower.encode(TowerInputs.of("item", items))

    def scores(
        self, users_UE: Tensor, items_IE: Tensor, seen: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Score users against items (U, I): (inner product + bias of a repeat) / temperature.

        `seen` are rows of users and of items, pairs of which the item is in the user's history,
        repeats allowed; they get the `repeat_bias`, where the model has one.
        """
        products_UI = users_UE @ items_IE.T
        temperature = self.temperature.to(products_UI.dtype)
        if seen is not None and self.repeat_bias is not None:
            is_seen_UI = torch.zeros_like(products_UI)
            is_seen_UI[seen] = 1
            products_UI = products_UI + self.repeat_bias.to(products_UI.dtype) * is_seen_UI
        in_place = not torch.is_grad_enabled()
        return products_UI.div_(temperature) if in_place else products_UI / temperature

    def start(self, *, n_users: int | None = None, **users: Tensor | None) -> UserState:
        """Return the state of users before any event; see `TowerNetwork.start`."""
        return self.user_tower.start(TowerInputs.of("user", users), n_users)

    def observe(
        self,
        state: UserState,
        history: Tensor,
        lengths: Tensor | None = None,
        *,
        event_features: Tensor | None = None,
        times: Tensor | None = None,
    ) -> UserState:
        """Return the state of users after more events; see `TowerNetwork.observe`."""
        given = TowerInputs(history=history, history_lengths=lengths, event_features=event_features)
        return self.user_tower.observe(state, given, times)

    def embed(self, state: UserState) -> Tensor:
        """Return the embeddings (U, E) of users as of their state."""
        return self.user_tower.embed(state)


class Tower(TowerNetwork):
    """A tower that only embeds; its parameters are uninitialised, to be filled by a checkpoint."""

    def __init__(self, config: FTMambaTowerConfig, name: str = "record") -> None:
        super().__init__()
        self.config = config
        self._build(config, name, FTMambaLayer)


class TwoTowers(TwoTowerNetwork):
    """Two towers that only embed, with the parameters of `FTMambaTwoTowerModel`, uninitialised."""

    def __init__(self, config: FTMambaConfig) -> None:
        super().__init__()
        self.config = config
        self._build(config, Tower)
        attach_kernels(self)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.log_temperature.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return self.log_temperature.dtype
