"""Tokens of a user's history, and rows of tokens that differ in length.

The events' items come as embeddings that the item tower has made of them, so that a history shares
its table and its content, and an item that no training has seen still says something.

Shapes: B batch, T events, L tokens, D hidden, E embedding (`projection_size`), F event features.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_ftmamba import Column
from .configuration_ftmamba import FTMambaTowerConfig
from .numeric_embeddings import init_vector

GAP = "gap"
"""The event feature that a scan may decay with."""


class Events(NamedTuple):
    """What users did, oldest first, padded on the right.

    Attributes:
        embeds: embeddings of the events' items (B, T, E).
        lengths: events of each user (B,); None means T of all.
        features: (B, T, F), as the data has them, NaN means missing; None means all missing.
    """

    embeds: Tensor
    lengths: Tensor | None
    features: Tensor | None


def _check_lengths(lengths_B: Tensor, rows: int, n_events: int) -> None:
    whole = not lengths_B.is_floating_point() and lengths_B.dtype is not torch.bool
    if lengths_B.shape != (rows,) or not whole:
        raise ValueError(
            f"the lengths of {rows} histories must be whole numbers of shape ({rows},), got "
            f"{lengths_B.dtype} of {tuple(lengths_B.shape)}"
        )
    # Not on a GPU, which would have to be waited for.
    if not lengths_B.is_cpu or torch.compiler.is_compiling():
        return
    wrong_B = (lengths_B < 0) | (lengths_B > n_events)
    if bool(wrong_B.any()):
        row = int(wrong_B.nonzero()[0])
        raise ValueError(
            f"the length of a history must be in 0..{n_events}, its padded width, got "
            f"{int(lengths_B[row])} in row {row} (the first is 0)"
        )


def pairs_of_events(places_BT: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the row and the item of every event, without those beyond a row's own."""
    if lengths_B is None:
        rows_BT = torch.arange(len(places_BT), device=places_BT.device)[:, None]
        return rows_BT.expand_as(places_BT).flatten(), places_BT.flatten()
    steps_T = torch.arange(places_BT.shape[1], device=places_BT.device)
    rows, steps = (steps_T < lengths_B[:, None]).nonzero().unbind(1)
    return rows, places_BT[rows, steps]


class TokenRows(NamedTuple):
    """The tokens of a batch of users.

    Attributes:
        hidden: (B, L, D), padded on the right.
        lengths: tokens of each row (B,); None means L in all.
        gaps: log(1 + seconds) ahead of each token (B, L), for a scan that decays with time.
    """

    hidden: Tensor
    lengths: Tensor | None
    gaps: Tensor | None

    def at_the_end(self, token_D: Tensor) -> "TokenRows":
        """Return the rows with one token more, right after each row's own last."""
        rows, length, _ = self.hidden.shape
        hidden_BLD = torch.cat([self.hidden, token_D.expand(rows, 1, -1)], 1)
        gaps_BL = None
        if self.gaps is not None:
            gaps_BL = torch.cat([self.gaps, self.gaps.new_zeros(rows, 1)], 1)
        if self.lengths is None:
            return TokenRows(hidden_BLD, None, gaps_BL)
        here_BL = torch.arange(length + 1, device=token_D.device) == self.lengths[:, None]
        hidden_BLD = torch.where(here_BL[..., None], token_D, hidden_BLD)
        gaps_BL = None if gaps_BL is None else gaps_BL.masked_fill(here_BL, 0)
        return TokenRows(hidden_BLD, self.lengths + 1, gaps_BL)

    def last(self) -> Tensor:
        """Return each row's last token (B, D), zeros for a row of none."""
        rows, length, _ = self.hidden.shape
        if self.lengths is None or length == 0:
            return self.hidden[:, -1] if length else self.hidden.sum(1)
        row_B = torch.arange(rows, device=self.hidden.device)
        last_BD = self.hidden[row_B, (self.lengths - 1).clamp(min=0)]
        return last_BD.masked_fill((self.lengths == 0)[:, None], 0)

    def mean(self) -> Tensor:
        """Return the mean over each row's own tokens (B, D), zeros for a row of none."""
        length = self.hidden.shape[1]
        if self.lengths is None:
            return self.hidden.mean(1) if length else self.hidden.sum(1)
        own_BL = torch.arange(length, device=self.hidden.device) < self.lengths[:, None]
        total_BD = self.hidden.masked_fill(~own_BL[..., None], 0).sum(1)
        return total_BD / self.lengths.clamp(min=1)[:, None]


class HistoryTokens(nn.Module):
    """A token an event: its item's embedding, what stands beside it, and where it stands."""

    def __init__(self, column: Column, config: FTMambaTowerConfig) -> None:
        super().__init__()
        size, n_features = config.hidden_size, len(column.event_features)
        self.initializer_range = config.initializer_range
        self.factor = math.sqrt(size) if config.scale_embedding else 1.0
        self.features = column.event_features
        self.scales = column.event_scales
        self.embedding_size = config.projection_size
        self.projection = (
            nn.Identity()
            if config.projection_size == size
            else nn.Linear(config.projection_size, size, bias=False)
        )
        # A missing feature counts as 0, plus a vector of its own.
        self.feature_weight = nn.Parameter(torch.empty(n_features, size)) if n_features else None
        self.missing = nn.Parameter(torch.empty(n_features, size)) if n_features else None
        self.start = nn.Parameter(torch.empty(size)) if config.history_start else None
        with_positions = config.max_positions > 0
        self.positions = nn.Embedding(config.max_positions, size) if with_positions else None
        self.gap_slot = column.event_features.index(GAP) if config.decays_with_time else None

    def reset_parameters(self) -> None:
        """Let features say nothing until training says otherwise: gaps are far from standard."""
        for silent in (self.feature_weight, self.missing):
            if silent is not None:
                init.zeros_(silent)
        if self.start is not None:
            init_vector(self.start, self.initializer_range)
        if self.positions is not None:
            init_vector(self.positions.weight, self.initializer_range)

    def forward(self, events: Events, first: int = 0) -> Tensor:
        """Return the tokens (B, T, D) of events of which the first is the user's first-th.

        Raises:
            ValueError: there are more events than positions.
        """
        tokens_BTD: Tensor = self.projection(events.embeds)
        if self.factor != 1:
            tokens_BTD = tokens_BTD * self.factor
        if self.feature_weight is not None and self.missing is not None:
            if events.features is None:
                tokens_BTD = tokens_BTD + self.missing.sum(0)
            else:
                missing_BTF = events.features.isnan()
                values_BTF = self._scaled(events.features).masked_fill(missing_BTF, 0)
                values_BTF = values_BTF.to(tokens_BTD.dtype)
                tokens_BTD = tokens_BTD + values_BTF @ self.feature_weight
                tokens_BTD = tokens_BTD + missing_BTF.to(tokens_BTD.dtype) @ self.missing
        if self.positions is None:
            return tokens_BTD
        n_events, n_positions = tokens_BTD.shape[1], self.positions.num_embeddings
        if first + n_events > n_positions:
            raise ValueError(
                f"a history of {first + n_events} events is longer than max_positions, "
                f"{n_positions}; give the newest {n_positions}, or train with more positions"
            )
        return tokens_BTD + self.positions.weight[first : first + n_events]

    def _scaled(self, features_BTF: Tensor) -> Tensor:
        """Return the features standardised, in 32 bits at least, as the column's scales say."""
        if not self.scales:
            return features_BTF
        wide_BTF = features_BTF.to(torch.promote_types(features_BTF.dtype, torch.float32))
        # Numbers, not a tensor: a buffer would be rounded with a model that is put in 16 bits.
        scaled = [
            (wide_BTF[..., slot] - mean) / deviation
            for slot, (mean, deviation) in enumerate(self.scales)
        ]
        return torch.stack(scaled, -1)

    def events(self, embeds: Tensor, lengths: Tensor | None, features: Tensor | None) -> Events:
        """Return events, their lengths None where all rows are full.

        Args:
            embeds: see `Events`, here and below.
            lengths: int64.
            features: float.

        Raises:
            ValueError: shapes, lengths or types do not fit each other.
        """
        size, n_features = self.embedding_size, len(self.features)
        if embeds.ndim != 3 or embeds.shape[2] != size or not embeds.is_floating_point():
            raise ValueError(
                f"a history must be floats of shape (users, events, {size}), the embeddings of "
                f"the events' items, got {embeds.dtype} of {tuple(embeds.shape)}; "
                "get_item_embeddings(...) makes them"
            )
        rows, n_events, _ = embeds.shape
        if features is not None and features.shape != (rows, n_events, n_features):
            raise ValueError(
                f"event features beside a history of {tuple(embeds.shape)} must have shape "
                f"{(rows, n_events, n_features)}, got {tuple(features.shape)}; give those that "
                "the column names, in its order"
            )
        if lengths is None:
            return Events(embeds, None, features)
        _check_lengths(lengths, rows, n_events)
        known = lengths.is_cpu and not torch.compiler.is_compiling()
        full = known and bool((lengths == n_events).all())
        return Events(embeds, None if full else lengths, features)

    def gaps(self, events: Events) -> Tensor | None:
        """Return the gap ahead of each event (B, T), 0 where missing, if the scan reads it."""
        if self.gap_slot is None or events.features is None:
            return None
        return events.features[..., self.gap_slot].nan_to_num(0)
