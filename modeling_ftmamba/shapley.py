"""Shapley values of the columns of two towers whose embeddings are multiplied.

The columns of both towers come in one random order; each adds what the score rises by as it comes
(Shapley 1953). The score is bilinear, so each tower is played alone, and how the two orders
interleave is summed in closed form: all 2**(n + m) coalitions cost 2**n + 2**m embeddings.

Shapes: N coalitions, C columns of a tower, S places in its order, T = C + 1 numbers of columns
that have come, E embedding, P orders, G groups of orders.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

MOST_EXACT = 10
"""Columns of a tower up to which all coalitions are embedded; beyond, orders are drawn."""

N_GROUPS = 8
ORDERS_A_GROUP = 8
"""Half of them drawn, half their reverses."""

Embed = Callable[[Tensor], Tensor]
"""Embeds coalitions, bool (N, C), True where the column has come; returns (N, E)."""


@dataclass(frozen=True)
class Game:
    """What a tower's embedding does as its columns come.

    Attributes:
        steps: (G, C, S, E), the change when a column comes at a place, times how often it does.
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
    errors = [
        _shares_by_group(own, other, n_groups).std(0) / n_groups**0.5
        for own, other in ((user, item), (item, user))
        if n_groups > 1
    ]
    user, item = _mean(user), _mean(item)
    (user_C,), (item_C,) = _shares_by_group(user, item, 1), _shares_by_group(item, user, 1)
    products_T = [user.levels[0, end] @ item.levels[0, end] for end in (0, -1)]
    return Shares(
        user=user_C / temperature,
        item=item_C / temperature,
        score=float(products_T[-1]) / temperature,
        baseline_score=float(products_T[0]) / temperature,
        standard_error=float(torch.cat(errors).max()) / temperature if errors else 0.0,
    )


def _shares_by_group(own: Game, other: Game, n_groups: int) -> Tensor:
    """Return (G, C): the steps against the other tower as it stands on average by then."""
    n_own, n_other = own.steps.shape[1], other.levels.shape[1] - 1
    weights_ST = _preceding(n_own, n_other)
    steps = own.steps.expand(n_groups, -1, -1, -1)
    levels = other.levels.expand(n_groups, -1, -1)
    return torch.einsum("gcse,st,gte->gc", steps, weights_ST, levels)


def _preceding(n_own: int, n_other: int) -> Tensor:
    """Return the probability (S, T) that T others precede the tower's column at place S."""
    orders = comb(n_own + n_other, n_other)
    return torch.tensor(
        [
            [
                comb(place + others, others)
                * comb(n_own - 1 - place + n_other - others, n_other - others)
                / orders
                for others in range(n_other + 1)
            ]
            for place in range(n_own)
        ],
        dtype=torch.float64,
    ).reshape(n_own, n_other + 1)


def _mean(game: Game) -> Game:
    return Game(game.steps.mean(0, keepdim=True), game.levels.mean(0, keepdim=True))


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
    counts_S = [n_columns * comb(n_columns - 1, place) for place in range(n_columns)]
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
    place_PC = order_PS.argsort(1)
    has_come = place_PC[:, None, :] < torch.arange(n_columns + 1)[:, None]
    embeds_NE = embed(has_come.flatten(0, 1)).double().cpu()
    embeds_PTE = embeds_NE.unflatten(0, (len(order_PS), n_columns + 1))
    group_P = torch.arange(len(order_PS)) // ORDERS_A_GROUP
    steps = embeds_NE.new_zeros(N_GROUPS, n_columns, n_columns, embeds_NE.shape[1])
    steps.index_put_(
        (group_P[:, None], order_PS, torch.arange(n_columns)),
        embeds_PTE.diff(dim=1) / ORDERS_A_GROUP,
        accumulate=True,
    )
    return Game(steps, embeds_PTE.unflatten(0, (N_GROUPS, ORDERS_A_GROUP)).mean(1))
