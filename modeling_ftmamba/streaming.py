"""Users kept fresh: an event at a time, at the same cost whatever lies behind.

What a tower with a scan keeps of a user's past is a `UserState`. It is what the full forward pass
would have there, so embeddings are equal for any split of a history into calls.

Shapes: B users, T events of a call, L tokens, D hidden, E embedding, F event features.
"""

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .history import GAP, Events, HistoryTokens
from .mixer_state import MixerState, Part
from .normalize import normalize
from .tokens import FeatureTokenizer
from .tower_inputs import GivenEvents, fitting_inputs, no_events
from .user_state import NO_TIME, UserState, gaps_of

# Numbers of a layer's state that are computed at a time, for some users and tokens: a megabyte, to
# stay in the cache. Of long histories at least so many tokens, for each costs a step.
_NUMBERS_AT_A_TIME = 2**18
_LEAST_TOKENS_AT_A_TIME = 8


class StateLayout(NamedTuple):
    """Sizes of a state, without its users.

    Attributes:
        conv: layers, channels, tokens kept of each.
        scan: layers, channels, numbers of state of each.
        numbers: of one layer's scan.
    """

    conv: tuple[int, int, int]
    scan: tuple[int, int, int]
    numbers: int

    def shapes(self, n_rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of `conv` and `scan` of so many users."""
        conv, scan = self.conv, self.scan
        return (conv[0], n_rows, *conv[1:]), (scan[0], n_rows, *scan[1:])


class StreamingTower(nn.Module):
    """A tower that reads from left to right, and can stop and go on; no gradients pass."""

    config: Any
    name: str
    tokenizer: FeatureTokenizer
    layers: Any
    norm: nn.Module
    head: nn.Module

    def start(
        self,
        numeric: Tensor | None = None,
        category_ids: Tensor | None = None,
        set_ids: Tensor | None = None,
        dense: Tensor | None = None,
        *,
        n_rows: int | None = None,
    ) -> UserState:
        """Return the state of users before any event.

        Args:
            numeric: see `forward`, here and below.
            category_ids: int64 (B, C).
            set_ids: int64 (B, S).
            dense: float (B, Q).
            n_rows: number of users, where the tower has no columns but the history; 1 if not told.

        Raises:
            ValueError: a tensor does not fit, or the tower has no state.
            RuntimeError: the tower is in training.
        """
        self._checked()
        tensors = {
            "numeric": numeric, "category_ids": category_ids, "set_ids": set_ids, "dense": dense,
        }  # fmt: skip
        given = GivenEvents(None if n_rows is None else no_events(self, n_rows), None, None)
        inputs = fitting_inputs(self, tensors, given)
        with torch.no_grad():
            tokens = self.tokenizer.ahead_of_cls(*inputs).hidden
            return self._read(self._nothing(inputs.n_rows), self.tokenizer.finish(tokens), Part())

    def observe(
        self,
        state: UserState,
        history: Tensor,
        lengths: Tensor | None = None,
        *,
        event_features: Tensor | None = None,
        times: Tensor | None = None,
    ) -> UserState:
        """Return the state of users after more events.

        Args:
            state: before them.
            history: embeddings of the events' items (B, T, E), oldest first, padded on the right.
            lengths: int64 (B,), events of each user, who may have none; None means T of all.
            event_features: float (B, T, F); NaN, or None, means missing.
            times: int64 (B, T), UTC epoch seconds, negative for none. The feature `gap` is made of
                them, from the state on. Without them the state forgets the time of its last event.

        Raises:
            ValueError: a tensor does not fit, the state is of other users or of another model, or
                an event is older than the one before it.
            RuntimeError: the tower is in training.
        """
        tokenizer = self._checked()
        events = tokenizer.events(history, lengths, event_features)
        events = events._replace(embeds=events.embeds.to(self._dtype))
        self._check_state(state, len(history))
        if history.shape[1] == 0:
            return state
        with torch.no_grad():
            if times is not None:
                events = _with_gaps(state, events, times, tokenizer.features)
            tokens_BTD = self.tokenizer.finish(tokenizer(events))
            read = self._read(state, tokens_BTD, Part(events.lengths, tokenizer.gaps(events)))
        n_more = history.shape[1] if events.lengths is None else events.lengths
        last_time_B = _last_time(times, state, events)
        return UserState(read.conv, read.scan, read.last, state.n_events + n_more, last_time_B)

    def embed(self, state: UserState) -> Tensor:
        """Return the embeddings (B, E) of users as of their state: those of `forward`.

        Raises:
            ValueError: the state is of another model, or the tower has none.
            RuntimeError: the tower is in training.
        """
        self._checked()
        self._check_state(state, len(state))
        with torch.no_grad():
            if self.tokenizer.cls is not None:
                cls_B1D = self.tokenizer.cls.expand(len(state), 1, -1)
                state = self._read(state, self.tokenizer.finish(cls_B1D), Part())
            return self.embedding_of(state.last.to(self._dtype))

    def embedding_of(self, pooled: Tensor) -> Tensor:
        """Return the embeddings (..., E) of pooled outputs (..., D)."""
        embeds: Tensor = self.head(self.norm(pooled))
        return normalize(embeds) if self.config.normalize_embeddings else embeds

    def history_tokens(self, what: str, poolings: tuple[str, ...]) -> HistoryTokens:
        """Return what makes tokens of events.

        Args:
            what: asks for it, in words.
            poolings: those for which it can be had.

        Raises:
            ValueError: the tower has no history, or pools in another way.
        """
        if self.tokenizer.history is None:
            raise ValueError(
                f"{what} need a column of kind 'history', the {self.name} tower has none; take a "
                "model that was trained with one"
            )
        if self.config.pooling not in poolings:
            raise ValueError(
                f"{what} need pooling {' or '.join(map(repr, poolings))}, the {self.name} tower "
                f"has {self.config.pooling!r}; train a model with it"
            )
        return self.tokenizer.history

    def _read(self, state: UserState, tokens_BLD: Tensor, part: Part) -> UserState:
        """Carry the layers' states on over tokens, for as many users at a time as fit the cache."""
        n_rows, n_tokens, _ = tokens_BLD.shape
        if n_tokens == 0 or n_rows == 0:
            return state
        dtype = torch.promote_types(tokens_BLD.dtype, torch.float32)
        conv = torch.empty_like(state.conv, dtype=dtype)
        scan = torch.empty_like(state.scan, dtype=dtype)
        newest = []
        size = self._rows_at_a_time(n_tokens)
        for first in range(0, n_rows, size):
            rows = slice(first, first + size)
            states = [
                MixerState(*one)
                for one in zip(
                    state.conv[:, rows].to(dtype), state.scan[:, rows].to(dtype), strict=True
                )
            ]
            some = Part(*(None if values is None else values[rows] for values in part))
            before_BD = state.last[rows].to(tokens_BLD.dtype)
            newest.append(self._read_rows(states, tokens_BLD[rows], some, before_BD))
            torch.stack([one.conv for one in states], out=conv[:, rows])
            torch.stack([one.scan for one in states], out=scan[:, rows])
        last_BD = newest[0] if len(newest) == 1 else torch.cat(newest)
        return UserState(conv, scan, last_BD, state.n_events, state.last_time)

    def _read_rows(
        self, states: list[MixerState], tokens_BLD: Tensor, part: Part, newest_BD: Tensor
    ) -> Tensor:
        """Carry the states on over tokens, a part of these at a time; return the newest output."""
        n_rows, n_tokens, _ = tokens_BLD.shape
        if n_tokens == 1 and part.lengths is None:
            newest_BD = tokens_BLD[:, 0]
            one = Part(None, None if part.gaps is None else part.gaps[:, 0])
            for index, layer in enumerate(self.layers):
                newest_BD, states[index] = layer.advance(newest_BD, states[index], one)
            return newest_BD
        size = max(1, _NUMBERS_AT_A_TIME // (n_rows * self._layout.numbers))
        for first in range(0, n_tokens, size):
            hidden_BTD = tokens_BLD[:, first : first + size]
            n_some = hidden_BTD.shape[1]
            some = Part(
                None if part.lengths is None else (part.lengths - first).clamp(0, n_some),
                None if part.gaps is None else part.gaps[:, first : first + size],
            )
            for index, layer in enumerate(self.layers):
                hidden_BTD, states[index] = layer.advance(hidden_BTD, states[index], some)
            newest_BD = _newest(hidden_BTD, some.lengths, newest_BD)
        return newest_BD

    def _rows_at_a_time(self, n_tokens: int) -> int:
        tokens = min(n_tokens, _LEAST_TOKENS_AT_A_TIME)
        return max(1, _NUMBERS_AT_A_TIME // (tokens * self._layout.numbers))

    def _nothing(self, n_rows: int) -> UserState:
        own = next(self.parameters())
        wide = torch.promote_types(own.dtype, torch.float32)
        shapes = self._layout.shapes(n_rows)
        return UserState(
            own.new_zeros(shapes[0], dtype=wide),
            own.new_zeros(shapes[1], dtype=wide),
            own.new_zeros(n_rows, self.config.hidden_size),
            own.new_zeros(n_rows, dtype=torch.int64),
            own.new_full((n_rows,), NO_TIME, dtype=torch.int64),
        )

    @cached_property
    def _layout(self) -> StateLayout:
        """Return the state's sizes, looked up once: a config is slow to read.

        Raises:
            ValueError: the tower has no state.
        """
        config = self.config
        self.history_tokens("streaming states", ("cls", "last"))
        if config.mixer == "attention":
            raise ValueError(
                f"the {self.name} tower's mixer is 'attention', which looks at all of the past "
                "again: no state of one size holds it; train a model with mixer 'mamba' or 'ssd'"
            )
        if config.max_positions:
            raise ValueError(
                f"the {self.name} tower numbers its events up to max_positions, "
                f"{config.max_positions}: a state would run out of them; train one without"
            )
        inner, n_state = config.inner_size, config.state_size
        convolved = inner + 2 * n_state if config.mixer == "ssd" else inner
        layers = config.num_hidden_layers
        return StateLayout(
            (layers, convolved, config.conv_kernel - 1), (layers, inner, n_state), inner * n_state
        )

    def _checked(self) -> HistoryTokens:
        _ = self._layout
        history = self.tokenizer.history
        assert history is not None
        if self.training:
            raise RuntimeError(
                f"the {self.name} tower is in training, where tokens are dropped at random; call "
                "model.eval() before states are made"
            )
        return history

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.layers[0].mixer.D.dtype
        return dtype

    def _check_state(self, state: UserState, n_rows: int) -> None:
        found = tuple(state.conv.shape), tuple(state.scan.shape)
        wanted = self._layout.shapes(n_rows)
        if found != wanted:
            raise ValueError(
                f"a state of {n_rows} users of this model has tensors of {wanted[0]} and "
                f"{wanted[1]}, got {found[0]} and {found[1]}; it is of other users or of another "
                "model: start it again"
            )


def _newest(hidden_BTD: Tensor, lengths_B: Tensor | None, before_BD: Tensor) -> Tensor:
    """Return each row's newest token (B, D): the one before where a row has none here."""
    if lengths_B is None:
        return hidden_BTD[:, -1]
    row_B = torch.arange(len(lengths_B), device=lengths_B.device)
    newest_BD = hidden_BTD[row_B, (lengths_B - 1).clamp(min=0)]
    return torch.where((lengths_B > 0)[:, None], newest_BD, before_BD)


def _with_gaps(
    state: UserState, events: Events, times_BT: Tensor, features: tuple[str, ...]
) -> Events:
    """Return events with the feature `gap`, if the column names it, made of their times."""
    rows, n_events, _ = events.embeds.shape
    if times_BT.shape != (rows, n_events) or times_BT.dtype is not torch.int64:
        raise ValueError(
            f"the times of {rows} users' {n_events} events must be int64 of shape "
            f"({rows}, {n_events}), seconds since 1970 in UTC, got {times_BT.dtype} of "
            f"{tuple(times_BT.shape)}"
        )
    gaps_BT = gaps_of(times_BT, state, events.lengths)
    if GAP not in features:
        return events
    shape = (rows, n_events, len(features))
    given_BTF = events.features
    made_BTF = events.embeds.new_full(shape, torch.nan) if given_BTF is None else given_BTF.clone()
    made_BTF[..., features.index(GAP)] = gaps_BT.to(made_BTF.dtype)
    return events._replace(features=made_BTF)


def _last_time(times_BT: Tensor | None, state: UserState, events: Events) -> Tensor:
    """Return the time of each user's newest event, of these or of those before."""
    if times_BT is None:
        newest_B = torch.full_like(state.last_time, NO_TIME)
    elif events.lengths is None:
        newest_B = times_BT[:, -1].clamp(min=NO_TIME)
    else:
        row_B = torch.arange(len(events.lengths), device=events.lengths.device)
        newest_B = times_BT[row_B, (events.lengths - 1).clamp(min=0)].clamp(min=NO_TIME)
    if events.lengths is None:
        return newest_B
    return torch.where(events.lengths > 0, newest_B, state.last_time)


class StreamingUsers(nn.Module):
    """Two towers whose users can be kept fresh."""

    user_tower: Any

    def start(
        self,
        user_numeric: Tensor | None = None,
        user_category_ids: Tensor | None = None,
        user_set_ids: Tensor | None = None,
        user_dense: Tensor | None = None,
        *,
        n_users: int | None = None,
    ) -> UserState:
        """Return the state of users before any event; see `StreamingTower.start`."""
        state: UserState = self.user_tower.start(
            user_numeric, user_category_ids, user_set_ids, user_dense, n_rows=n_users
        )
        return state

    def observe(
        self,
        state: UserState,
        history: Tensor,
        lengths: Tensor | None = None,
        *,
        event_features: Tensor | None = None,
        times: Tensor | None = None,
    ) -> UserState:
        """Return the state of users after more events; see `StreamingTower.observe`."""
        after: UserState = self.user_tower.observe(
            state, history, lengths, event_features=event_features, times=times
        )
        return after

    def embed(self, state: UserState) -> Tensor:
        """Return the embeddings (U, E) of users as of their state."""
        embeds: Tensor = self.user_tower.embed(state)
        return embeds
