"""The feature tokenizer: one token a column, then one an event of a history, `[CLS]` last.

Shapes: B batch, L tokens, D hidden, C categorical columns, P numeric columns, S slots of sets,
M members of one set, Q slots of dense columns, W width of one dense column.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_ftmamba import (
    HISTORY,
    N_SPECIAL_IDS,
    PADDING_ID,
    UNSEEN_ID,
    Column,
    columns_of_tensor,
    history_of,
)
from .configuration_ftmamba import FTMambaTowerConfig
from .dropout import Dropout
from .history import Events, HistoryTokens, TokenRows
from .linears import is_untouched
from .numeric_embeddings import NUMERIC_EMBEDDING_CLASSES, init_uniform, init_vector


class NumericTokens(nn.Module):
    """Tokens of the `numeric` columns; a missing value adds a vector of its own to the mean's."""

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.embedding = NUMERIC_EMBEDDING_CLASSES[config.numeric_embedding](columns, config)
        self.missing = nn.Parameter(torch.empty(len(columns), config.hidden_size))

    def reset_parameters(self) -> None:
        """Let a missing value say nothing until training says otherwise."""
        init.zeros_(self.missing)

    def forward(self, numeric_BP: Tensor) -> Tensor:
        """Return the tokens (B, P, D); NaN means missing."""
        missing_BP = numeric_BP.isnan()
        values_BP = numeric_BP.masked_fill(missing_BP, 0).to(self.missing.dtype)
        tokens_BPD = self.embedding(values_BP)
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
        offset_C = self.first_rows()
        init.copy_(self.offsets, offset_C)
        if self.bias is not None:
            _init_bias(self.bias, self.initializer_range)
        init_table(self.table, offset_C, self.initializer_range)

    def first_rows(self) -> Tensor:
        """Return each column's first row in the table (C,), what `offsets` is to hold."""
        size_C = torch.tensor(self.sizes)
        return size_C.cumsum(0) - size_C

    def forward(self, ids_BC: Tensor) -> Tensor:
        """Return the tokens (B, C, D)."""
        if self.training and self.unseen_probability:
            ids_BC = hide(ids_BC, self.unseen_probability)
        tokens_BCD = self.table(ids_BC + self.offsets)
        return tokens_BCD if self.bias is None else tokens_BCD + self.bias


class SetTokens(nn.Module):
    """The mean of a set's embeddings, padding left out; an empty set is the bias alone."""

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.widths = [column.max_length for column in columns]
        self.unseen_probability = config.unseen_probability
        self.initializer_range = config.initializer_range
        self.tables = nn.ModuleList(
            nn.Embedding(column.vocabulary_size, config.hidden_size, padding_idx=PADDING_ID)
            for column in columns
        )
        self.bias = nn.Parameter(torch.empty(len(columns), config.hidden_size))

    def reset_parameters(self) -> None:
        """Draw the tables and biases."""
        _init_bias(self.bias, self.initializer_range)
        for table in self.tables:
            init_table(table, torch.zeros(1, dtype=torch.int64), self.initializer_range)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Return the tokens (B, columns, D)."""
        ids = map(self._hidden, ids_BS.split(self.widths, -1))
        means = [
            _mean_of_set(table, ids_BM) for table, ids_BM in zip(self.tables, ids, strict=True)
        ]
        return torch.stack(means, 1) + self.bias

    def _hidden(self, ids_BM: Tensor) -> Tensor:
        if self.training and self.unseen_probability:
            hidden_BM = hide(ids_BM, self.unseen_probability)
            return hidden_BM.masked_fill(ids_BM == PADDING_ID, PADDING_ID)
        return ids_BM


def _mean_of_set(table: nn.Module, ids_BM: Tensor) -> Tensor:
    """Return the mean (B, D) of the members' embeddings; 0 of no members."""
    if is_untouched(table, nn.Embedding):
        weight: Tensor = table.weight  # type: ignore[assignment]
        # Neither the members' embeddings nor their gradients are ever written out.
        return F.embedding_bag(ids_BM, weight, mode="mean", padding_idx=PADDING_ID)
    present_BM = ids_BM != PADDING_ID
    members_BMD = table(ids_BM) * present_BM[..., None]
    return members_BMD.sum(1) / present_BM.sum(1, keepdim=True).clamp(min=1)


class DenseTokens(nn.Module):
    """A linear map for every `timestamp` and `vector` column; a missing one has its own vector."""

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.widths = [column.dimension for column in columns]
        self.maps = nn.ModuleList(nn.Linear(width, config.hidden_size) for width in self.widths)
        self.missing = nn.Parameter(torch.empty(len(columns), config.hidden_size))

    def reset_parameters(self) -> None:
        """Let a missing value say nothing until training says otherwise."""
        init.zeros_(self.missing)

    def forward(self, dense_BQ: Tensor) -> Tensor:
        """Return the tokens (B, columns, D); NaN in a column's slots means missing."""
        tokens, missing = [], []
        for linear, dense_BW in zip(self.maps, dense_BQ.split(self.widths, -1), strict=True):
            missing_B1 = dense_BW.isnan().any(-1, keepdim=True)
            values_BW = dense_BW.masked_fill(missing_B1, 0).to(self.missing.dtype)
            tokens.append(linear(values_BW))
            missing.append(missing_B1)
        return torch.stack(tokens, 1) + torch.stack(missing, 1) * self.missing


TOKENS_OF_TENSOR = {
    "numeric": NumericTokens,
    "category_ids": CategoricalTokens,
    "set_ids": SetTokens,
    "dense": DenseTokens,
}


class FeatureTokenizer(nn.Module):
    """Turn an encoded record into tokens in the order of the columns (FT-Mamba, section 3)."""

    def __init__(self, config: FTMambaTowerConfig) -> None:
        super().__init__()
        parsed = config.parsed_columns()
        columns = [column for column in parsed if column.kind != HISTORY]
        groups = {name: columns_of_tensor(columns, name) for name in TOKENS_OF_TENSOR}
        self.groups = {name: group for name, group in groups.items() if group}
        self.kinds = nn.ModuleDict(
            {name: TOKENS_OF_TENSOR[name](group, config) for name, group in self.groups.items()}
        )
        arrival = [column.name for group in self.groups.values() for column in group]
        place_of = {name: place for place, name in enumerate(arrival)}
        self.order = [place_of[column.name] for column in columns]
        self.in_order = self.order == sorted(self.order)
        # NOTE[DIFF]: the paper's [CLS] is a numeric token with input 1, w + b; one vector is both.
        with_cls = config.pooling == "cls" or not parsed
        self.cls = nn.Parameter(torch.empty(config.hidden_size)) if with_cls else None
        self.both_ends = config.bidirectional
        column = history_of(parsed)
        self.history = None if column is None else HistoryTokens(column, config)
        self.initializer_range = config.initializer_range
        self.dropout = Dropout(config.token_dropout)
        with_norm = config.token_norm
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if with_norm else None

    def reset_parameters(self) -> None:
        """Draw the `[CLS]` token."""
        if self.cls is not None:
            init_vector(self.cls, self.initializer_range)

    def forward(self, tensors: dict[str, Tensor], n_rows: int) -> Tensor:
        """Return the tokens (B, L, D) of n_rows records without events.

        A bidirectional tower has a `[CLS]` at both ends: read backwards, the first is the last.
        """
        return self.rows(tensors, n_rows, None).hidden

    def rows(self, tensors: dict[str, Tensor], n_rows: int, events: Events | None) -> TokenRows:
        """Return the tokens of n_rows records and of the events that follow them."""
        rows = self.ahead_of_cls(tensors, n_rows, events)
        hidden_BLD = rows.hidden
        if self.cls is not None and self.both_ends:
            hidden_BLD = torch.cat([self.cls.expand(n_rows, 1, -1), hidden_BLD], 1)
        if self.cls is not None:
            rows = rows._replace(hidden=hidden_BLD).at_the_end(self.cls)
        return rows._replace(hidden=self.finish(rows.hidden))

    def ahead_of_cls(
        self, tensors: dict[str, Tensor], n_rows: int, events: Events | None
    ) -> TokenRows:
        """Return the tokens of records and events alone, before dropout and norm."""
        tokens = self._profile(tensors, n_rows)
        n_ahead = sum(token.shape[1] for token in tokens)
        if self.history is not None and events is not None:
            tokens.append(self.history(events))
        if not tokens:
            assert self.cls is not None
            tokens.append(self.cls.new_empty(n_rows, 0, self.cls.shape[0]))
        hidden_BLD = torch.cat(tokens, 1) if len(tokens) > 1 else tokens[0]
        if self.history is None or events is None:
            return TokenRows(hidden_BLD, None, None)
        lengths_B = None if events.lengths is None else n_ahead + events.lengths
        gaps_BT = self.history.gaps(events)
        if gaps_BT is None:
            return TokenRows(hidden_BLD, lengths_B, None)
        gaps_BL = torch.cat([gaps_BT.new_zeros(n_rows, n_ahead), gaps_BT], 1)
        return TokenRows(hidden_BLD, lengths_B, gaps_BL)

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply dropout and, if there is one, the norm to tokens (..., D)."""
        dropped: Tensor = self.dropout(tokens)
        return dropped if self.norm is None else self.norm(dropped)

    def _profile(self, tensors: dict[str, Tensor], n_rows: int) -> list[Tensor]:
        """Return the tokens (B, P, D) of the columns in parts, and what starts a history."""
        tokens = [self.kinds[name](tensors[name]) for name in self.groups]
        if not self.in_order:
            parts = torch.cat(tokens, 1).unbind(1)
            tokens = [torch.stack([parts[index] for index in self.order], 1)]
        if self.history is not None and self.history.start is not None:
            tokens.append(self.history.start.expand(n_rows, 1, -1))
        return tokens

    def check(self, tensors: dict[str, Tensor | None], tower: str) -> None:
        """Raise ValueError for a tensor that is absent, superfluous or of another width."""
        for name, tensor in tensors.items():
            width = sum(column.width for column in self.groups.get(name, []))
            got = None if tensor is None else tuple(tensor.shape)
            if (got is None and width) or (got is not None and (len(got) != 2 or got[1] != width)):
                names = ", ".join(column.name for column in self.groups.get(name, [])) or "none"
                raise ValueError(
                    f"the {tower} tower's tensor {name!r} must have shape (records, {width}) for "
                    f"the columns: {names}; got {got}. Encode the records with the feature "
                    "extractor of this checkpoint"
                )


def hide(ids: Tensor, probability: float) -> Tensor:
    """Replace ids by the unseen id, each with the given probability."""
    hidden = torch.rand(ids.shape, device=ids.device) < probability
    return ids.masked_fill(hidden, UNSEEN_ID)


def init_table(table: nn.Module, offset_C: Tensor, initializer_range: float) -> None:
    """Draw a table whose columns' special ids start at zero: untrained, they say nothing."""
    assert isinstance(table, nn.Embedding)
    weight = torch.empty(table.weight.shape)
    if initializer_range:
        weight.normal_(std=initializer_range)
    else:
        bound = table.embedding_dim**-0.5
        weight.uniform_(-bound, bound)
    special_CS = offset_C[:, None] + torch.arange(N_SPECIAL_IDS)
    weight[special_CS.flatten()] = 0.0
    init.copy_(table.weight, weight)


def _init_bias(bias: Tensor, initializer_range: float) -> None:
    if initializer_range:
        init.zeros_(bias)
    else:
        init_uniform(bias, bias.shape[-1])
