"""Why an item is recommended to a user: what each column of both adds to the score.

The baseline is the score when every column of both is missing, as the extractor encodes it. Each
column gets its Shapley value (Shapley 1953): what the score rises by as the column comes, on
average over all orders in which the columns of both towers can come. Baseline and shares add up to
the score.

Ours rather than captum's or shap's, because the score is bilinear: each tower is played alone, how
the two orders interleave is summed in closed form, and all 2**(n + m) coalitions cost
2**n + 2**m embeddings.

Shapes: N coalitions, C columns of a tower, S slots of a tensor or indices in an order, T = C + 1
numbers of columns that have come, E embedding, P orders, G groups of orders.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.checks import check_item_records
from modeling_ftmamba.catalogue import Catalogue, history_weights
from modeling_ftmamba.configuration_ftmamba import (
    HISTORY,
    MISSING_ID,
    N_SPECIAL_IDS,
    PADDING_ID,
    TENSOR_OF_KIND,
    columns_of_tensor,
    history_of,
)
from modeling_ftmamba.processing_ftmamba import Event, HistoryReader

PARTS = ("user", "item", "counts")
NEIGHBOURS, POPULARITY = "items often chosen after the history", "popularity"
"""What a blend adds; see `modeling_ftmamba.catalogue.Blend`."""

_MOST_NAMED = 2
MOST_EXACT = 10
"""Columns of a tower up to which all coalitions are embedded; beyond, orders are drawn."""

N_GROUPS = 8
ORDERS_A_GROUP = 8
"""Half of them drawn, half their reverses."""

_COALITIONS_AT_ONCE = 1024
_COLOURS = {"user": "#2f6fab", "item": "#c46a1b", "counts": "#4d8c57"}
_MOST_LETTERS = 40

Inputs = Mapping[str, Tensor]
"""Encoded records as the extractor names them, such as `user_numeric`."""

Embed = Callable[[Tensor], Tensor]
"""Embeds coalitions, bool (N, C), True where the column has come; returns (N, E)."""


@dataclass(frozen=True)
class Explanation:
    """The score of one item for one user, taken apart.

    Attributes:
        item_key: of the item.
        title: of the item; empty where the table has none.
        score: as `Recommender.score` gives it.
        baseline_score: when every column of both is missing.
        user: what each user column adds; with `item` and `counts` it sums to
            `score - baseline_score`.
        item: what each item column adds.
        user_values: what the model read in each user column, in words.
        item_values: the same of the item.
        standard_error: of the worst share; 0 where all orders of the columns were counted, which is
            up to 10 columns a tower.
        counts: what a blend adds by neighbours of the history and by popularity; empty without.
        counts_values: the items of the history that add most, and the popularity.
    """

    item_key: str
    title: str
    score: float
    baseline_score: float
    user: Mapping[str, float]
    item: Mapping[str, float]
    user_values: Mapping[str, str]
    item_values: Mapping[str, str]
    standard_error: float = 0.0
    counts: Mapping[str, float] = field(default_factory=dict)
    counts_values: Mapping[str, str] = field(default_factory=dict)

    def ranked(self) -> list[tuple[str, str, str, float]]:
        """Return part, column, value in words and share of every column, the strongest first."""
        rows = [
            (tower, column, getattr(self, f"{tower}_values")[column], share)
            for tower in PARTS
            for column, share in getattr(self, tower).items()
        ]
        return sorted(rows, key=lambda row: -abs(row[3]))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)

    def plot(self, path: str | Path) -> None:
        """Draw the shares as bars into a picture, whose format the name's ending tells.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.patches import Patch
        except ImportError as error:
            raise ImportError(
                "drawing an explanation needs matplotlib, which is not installed; run "
                "pip install 'ftmamba[plots]'"
            ) from error
        rows = self.ranked()[::-1]
        figure = Figure(figsize=(8, 1.5 + 0.36 * max(1, len(rows))), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        shares = [share for *_, share in rows]
        axes.barh(range(len(rows)), shares, color=[_COLOURS[tower] for tower, *_ in rows])
        axes.set_yticks(range(len(rows)), [_label(column, value) for _, column, value, _ in rows])
        for index, share in enumerate(shares):
            side, offset = ("left", 3) if share >= 0 else ("right", -3)
            axes.annotate(
                f"{share:+.2f}", (share, index), xytext=(offset, 0), ha=side, va="center",
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axes.axvline(0, color="black", linewidth=0.8)
        axes.margins(x=0.12)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        ends = f"from {self.baseline_score:.2f} when nothing is known to {self.score:.2f}"
        axes.set_xlabel(f"what a column adds to the score: {ends}", fontsize=9)
        axes.set_title(self.title or self.item_key, loc="left")
        handles = [
            Patch(color=_COLOURS[tower], label=tower) for tower in PARTS if getattr(self, tower)
        ]
        axes.legend(handles=handles, loc="lower right", frameon=False)
        figure.savefig(path, dpi=150)


def _label(column: str, value: str) -> str:
    text = f"{column} = {' '.join(value.split())}"
    # A dollar sign would start a formula.
    text = text.replace("$", r"\$")
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"


def explain(
    model: Any,
    extractor: Any,
    catalogue: Catalogue,
    record: Mapping[str, Any],
    item_key: str,
    events: Sequence[Event] | None = None,
) -> Explanation:
    """Explain the score of one item for one user.

    Args:
        model: both towers, in evaluation mode.
        extractor: of the same checkpoint.
        catalogue: of the same checkpoint.
        record: raw columns of the user.
        item_key: of the item.
        events: the user's history, in place of the record's; it counts as one column.

    Raises:
        ValueError: there is no such item, a value has the wrong type, or the catalogue does not
            hold its items' records.
    """
    row = catalogue.row(item_key)
    users, items = extractor.columns("user"), extractor.columns("item")
    if items and not catalogue.records:
        raise ValueError(
            f"the catalogue holds embeddings only, so the score of item {item_key!r} cannot be "
            "taken apart: its records were too wide to be kept; use narrower columns"
        )
    check_item_records(catalogue, items, slice(row, row + 1))
    item = {
        name: torch.from_numpy(record_IS[row : row + 1].copy())
        for name, record_IS in catalogue.records.items()
    }
    item = {name: x if x.is_floating_point() else x.long() for name, x in item.items()}
    device = model.temperature.device
    items_IE = torch.from_numpy(catalogue.embeddings).to(device)
    reader = HistoryReader(model, extractor, catalogue, items_IE)
    histories = reader.events([record]) if events is None else [events]
    user = extractor(users=[dict(record)])
    with torch.inference_mode():
        history, rows = reader.of_events(histories), reader.rows(histories)[0]
        embed_user = _coalitions(users, user, extractor(users=[{}]), history)
        embed_item = _coalitions(items, item, extractor(items=[{}]), {})
        found = shares(
            play(
                lambda come_NC: embed_user(model.get_user_embeddings, come_NC, device), len(users)
            ),
            play(
                lambda come_NC: embed_item(model.get_item_embeddings, come_NC, device), len(items)
            ),
            temperature=float(model.temperature),
        )
    user_C, score, column = found.user.clone(), found.score, history_of(users)
    user_values = values_in_words(extractor, "user", user)
    if column is not None:
        n_events = int(history["user_history_lengths"][0])
        user_values[column.name] = f"{n_events} event{'' if n_events == 1 else 's'}"
        if model.repeat_bias is not None and row in rows[-column.max_length :]:
            # The bias of a repeat comes with the history, in whatever order the columns come.
            bias = float(model.repeat_bias.detach() / model.temperature.detach())
            user_C[users.index(column)] += bias
            score += bias
    counts, counts_values = _counted(catalogue, rows, row)
    return Explanation(
        item_key=catalogue.keys[row],
        title=catalogue.titles[row],
        score=score + sum(counts.values()),
        baseline_score=found.baseline_score,
        user=dict(zip((one.name for one in users), user_C.tolist(), strict=True)),
        item=dict(zip((one.name for one in items), found.item.tolist(), strict=True)),
        user_values=user_values,
        item_values=values_in_words(extractor, "item", item),
        standard_error=found.standard_error,
        counts=counts,
        counts_values=counts_values,
    )


def _counted(
    catalogue: Catalogue, rows: NDArray[np.int64], row: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Return what the blend adds to the score of an item, and of what, in words."""
    blend = catalogue.blend
    if blend is None:
        return {}, {}
    prior = blend.popularity_weight if len(rows) else blend.cold_weight
    popularity = float(blend.log_popularity[row])
    counts = {POPULARITY: prior * popularity}
    values = {POPULARITY: f"{round(math.expm1(popularity))} interactions"}
    if len(rows):
        newest_R = rows[::-1][: blend.max_history]
        n_R = np.full(len(newest_R), len(newest_R))
        shape = blend.ratio, blend.n_recent, blend.recent_share
        weight_R = blend.weight * history_weights(np.arange(len(newest_R)), n_R, *shape)
        by_item: dict[int, float] = {}
        for item, weight in zip(newest_R.tolist(), weight_R.tolist(), strict=True):
            own = slice(*blend.starts[item : item + 2]) if item >= 0 else slice(0)
            share = weight * float(blend.evidence[own][blend.neighbours[own] == row].sum())
            by_item[item] = by_item.get(item, 0.0) + share
        strongest = sorted((one for one in by_item if by_item[one]), key=lambda one: -by_item[one])
        names = [catalogue.titles[one] or catalogue.keys[one] for one in strongest[:_MOST_NAMED]]
        counts[NEIGHBOURS] = sum(by_item.values())
        values[NEIGHBOURS] = " + ".join(names) or "none"
    return counts, values


def values_in_words(extractor: Any, tower: str, inputs: Inputs) -> dict[str, str]:
    """Return in words what the model reads in each column of one encoded record.

    By the columns' kinds, not the encoders' classes, of which a checkpoint may have its own.
    """
    first = dict.fromkeys(TENSOR_OF_KIND.values(), 0)
    found = {}
    for column in extractor.columns(tower):
        if column.kind == HISTORY:
            continue
        tensor = TENSOR_OF_KIND[column.kind]
        slots = inputs[f"{tower}_{tensor}"][0, first[tensor] : first[tensor] + column.width].numpy()
        first[tensor] += column.width
        encoder = extractor.encoder(tower, column.name)
        if column.kind in ("categorical", "categories"):
            known = [_category(encoder, int(one)) for one in slots if one != PADDING_ID]
            found[column.name] = ", ".join(known) or "none"
        elif np.isnan(slots).any():
            found[column.name] = "missing"
        elif column.kind == "numeric":
            found[column.name] = _number(encoder, float(slots[0]))
        elif column.kind == "timestamp":
            seconds = _unscaled(float(slots[0]), encoder.line)
            time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
            found[column.name] = time.strftime("%Y-%m-%d")
        else:
            found[column.name] = f"a vector of {len(slots)}"
    return found


def _category(encoder: Any, one: int) -> str:
    if one < N_SPECIAL_IDS:
        return "missing" if one == MISSING_ID else "never seen in training"
    is_known = one < encoder.first_bucket
    return encoder.texts[one - N_SPECIAL_IDS] if is_known else "rare"


def _number(encoder: Any, scaled: float) -> str:
    if encoder.table.ndim == 2:
        number = float(np.interp(scaled, encoder.table[1], encoder.table[0]))
    else:
        number = _unscaled(scaled, encoder.table)
    if days := encoder.column.popularity_days:
        return f"{round(math.expm1(number))} in {days} day{'' if days == 1 else 's'}"
    return f"{number:.6g}"


def _unscaled(scaled: float, mean_and_slope: NDArray[np.float64]) -> float:
    mean, slope = map(float, mean_and_slope)
    return scaled / slope + mean if slope else mean


def _coalitions(
    columns: Sequence[Any], record: Inputs, missing: Inputs, history: Inputs
) -> Callable[[Callable[..., Tensor], Tensor, torch.device], Tensor]:
    """Return what embeds a record with only some of its columns, the others missing."""
    slots = {
        name: [
            index
            for index, column in enumerate(columns)
            if column in columns_of_tensor(columns, name.split("_", 1)[1])
            for _ in range(column.width)
        ]
        for name in record
    }
    column = history_of(columns)

    def embed_coalitions(
        embed: Callable[..., Tensor], has_come_NC: Tensor, device: torch.device
    ) -> Tensor:
        parts = []
        for start in range(0, len(has_come_NC), _COALITIONS_AT_ONCE):
            has_come = has_come_NC[start : start + _COALITIONS_AT_ONCE]
            inputs = {
                name: torch.where(has_come[:, slots[name]], values, missing[name])
                for name, values in record.items()
            }
            for name, values in history.items():
                inputs[name] = values.expand(len(has_come), *values.shape[1:])
            if history:
                # A history comes whole, or there are no events at all.
                n_events = inputs["user_history_lengths"].cpu()
                inputs["user_history_lengths"] = n_events * has_come[:, columns.index(column)]
            parts.append(embed(**{name: values.to(device) for name, values in inputs.items()}))
        return torch.cat(parts)

    return embed_coalitions


@dataclass(frozen=True)
class Game:
    """What a tower's embedding does as its columns come.

    Attributes:
        steps: (G, C, S, E), the change when a column comes at an index, times how often it does.
        levels: (G, T, E), the mean embedding when so many columns have come.
    """

    steps: Tensor
    levels: Tensor


@dataclass(frozen=True)
class Shares:
    """Shapley values.

    Attributes:
        user: float64, one a user column.
        item: float64, one an item column.
        score: with every column.
        baseline_score: with none; the shares add up to the difference of the two.
        standard_error: of the worst share; 0 where all coalitions were embedded.
    """

    user: Tensor
    item: Tensor
    score: float
    baseline_score: float
    standard_error: float


def play(embed: Embed, n_columns: int, seed: int = 0) -> Game:
    """Let the columns of a tower come in all orders, or in a sample of them.

    Args:
        embed: see `Embed`.
        n_columns: C.
        seed: of the sample.
    """
    if n_columns <= MOST_EXACT:
        return _all_coalitions(embed, n_columns)
    return _drawn_orders(embed, n_columns, torch.Generator().manual_seed(seed))


def shares(user: Game, item: Game, temperature: float) -> Shares:
    """Return what each column adds to the inner product over the temperature."""
    n_groups = max(len(user.levels), len(item.levels))
    pairs = ((user, item), (item, user))
    by_group = [_shares_by_group(own, other, n_groups) for own, other in pairs]
    user, item = (Game(one.steps.mean(0)[None], one.levels.mean(0)[None]) for one in pairs[0])
    (user_C,), (item_C,) = _shares_by_group(user, item, 1), _shares_by_group(item, user, 1)
    products = [user.levels[0, end] @ item.levels[0, end] for end in (0, -1)]
    error = torch.cat([one.std(0) for one in by_group]).max() if n_groups > 1 else torch.zeros(())
    return Shares(
        user=user_C / temperature,
        item=item_C / temperature,
        score=float(products[-1]) / temperature,
        baseline_score=float(products[0]) / temperature,
        standard_error=float(error) / n_groups**0.5 / temperature,
    )


def _shares_by_group(own: Game, other: Game, n_groups: int) -> Tensor:
    """Return (G, C): the steps against the other tower as it stands on average by then."""
    weights_ST = _preceding(own.steps.shape[1], other.levels.shape[1] - 1)
    steps = own.steps.expand(n_groups, -1, -1, -1)
    levels = other.levels.expand(n_groups, -1, -1)
    return torch.einsum("gcse,st,gte->gc", steps, weights_ST, levels)


def _preceding(n_own: int, n_other: int) -> Tensor:
    """Return the probability (S, T) that T others precede the tower's column at index S."""
    orders = comb(n_own + n_other, n_other)
    probabilities = [
        comb(first + others, others)
        * comb(n_own - 1 - first + n_other - others, n_other - others)
        / orders
        for first in range(n_own)
        for others in range(n_other + 1)
    ]
    return torch.tensor(probabilities, dtype=torch.float64).reshape(n_own, n_other + 1)


def _all_coalitions(embed: Embed, n_columns: int) -> Game:
    code_N = torch.arange(2**n_columns)
    has_come_NC = (code_N[:, None] >> torch.arange(n_columns)) % 2 == 1
    embeds_NE = embed(has_come_NC).double().cpu()
    size_N = has_come_NC.sum(1)
    levels_TE = embeds_NE.new_zeros(n_columns + 1, embeds_NE.shape[1])
    levels_TE.index_add_(0, size_N, embeds_NE)
    steps = embeds_NE.new_zeros(n_columns, n_columns, embeds_NE.shape[1])
    for column in range(n_columns):
        without = code_N[~has_come_NC[:, column]]
        gains = embeds_NE[without + 2**column] - embeds_NE[without]
        steps[column].index_add_(0, size_N[without], gains)
    counts_T = [comb(n_columns, n_come) for n_come in range(n_columns + 1)]
    counts_S = [n_columns * comb(n_columns - 1, index) for index in range(n_columns)]
    return Game(
        steps=(steps / steps.new_tensor(counts_S)[:, None])[None],
        levels=(levels_TE / levels_TE.new_tensor(counts_T)[:, None])[None],
    )


def _drawn_orders(embed: Embed, n_columns: int, generator: torch.Generator) -> Game:
    drawn = [
        torch.randperm(n_columns, generator=generator)
        for _ in range(N_GROUPS * ORDERS_A_GROUP // 2)
    ]
    order_PS = torch.stack([order for one in drawn for order in (one, one.flip(0))])
    index_PC = order_PS.argsort(1)
    has_come = index_PC[:, None, :] < torch.arange(n_columns + 1)[:, None]
    embeds_NE = embed(has_come.flatten(0, 1)).double().cpu()
    embeds_PTE = embeds_NE.reshape(len(order_PS), n_columns + 1, -1)
    group_P = torch.arange(len(order_PS)) // ORDERS_A_GROUP
    steps = embeds_NE.new_zeros(N_GROUPS, n_columns, n_columns, embeds_NE.shape[1])
    steps.index_put_(
        (group_P[:, None], order_PS, torch.arange(n_columns)),
        embeds_PTE.diff(dim=1) / ORDERS_A_GROUP,
        accumulate=True,
    )
    levels = embeds_PTE.reshape(N_GROUPS, ORDERS_A_GROUP, *embeds_PTE.shape[1:]).mean(1)
    return Game(steps, levels)
