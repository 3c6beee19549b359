"""How interactions are split into training, validation and test.

Shapes: R interactions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ftmamba.data.interactions import Interactions, concatenate
from ftmamba.evaluation.named import make_named


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of the interactions.

    Attributes:
        train: to fit a model.
        validation: to choose hyper-parameters and the epoch.
        test: to be used once.
        validation_time: first second after training, when models are asked about `validation`;
            None unless the split cuts all users at one instant.
        test_time: the same for `test`, after validation.
        description: one line for tables and cards.

    Raises:
        ValueError: there is no training or no test interaction.
    """

    train: Interactions
    validation: Interactions
    test: Interactions
    validation_time: int | None
    test_time: int | None
    description: str

    def __post_init__(self) -> None:
        for part, rows in (("training", self.train), ("test", self.test)):
            if not len(rows):
                raise ValueError(
                    f"the {part} part is empty under the split '{self.description}' "
                    f"(training {len(self.train)}, validation {len(self.validation)}, test "
                    f"{len(self.test)} interactions); give more data or choose other fractions"
                )

    @property
    def before_test(self) -> Interactions:
        """Training then validation, to fit a model again before its test."""
        return concatenate(self.train, self.validation)


class Splitter(Protocol):
    """A rule that splits interactions, always in the same way."""

    def split(self, interactions: Interactions) -> Split: ...


@dataclass(frozen=True)
class RandomPerUser:
    """Each user's interactions are divided at random (the paper; Microsoft's recommenders).

    Row r draws p_r, uniform. Among a user's n rows, the row of the j-th smallest p goes to
    training if j/n <= 1 - test_fraction, else to test. Training rows are divided once more in the
    same way. Users of a single row are divided together, as if they were one. Times are ignored, so
    a model may learn from a user's future.

    Attributes:
        test_fraction: of a user's interactions.
        validation_fraction: of what is not test; 0 leaves the validation part empty.
        seed: of the draws.
    """

    test_fraction: float = 0.25
    validation_fraction: float = 0.15
    seed: int = 42

    def __post_init__(self) -> None:
        _check_fraction("random", "test_fraction", self.test_fraction)
        if self.validation_fraction != 0:
            _check_fraction("random", "validation_fraction", self.validation_fraction)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"split 'random': seed must be a whole number >= 0, got {self.seed!r}")

    def split(self, interactions: Interactions) -> Split:
        generator = np.random.default_rng(self.seed)
        is_test_R = _rank_in_user(interactions.user_ids, generator) > 1 - self.test_fraction
        test = interactions.select(is_test_R)
        rest = interactions.select(~is_test_R)
        is_validation = _rank_in_user(rest.user_ids, generator) > 1 - self.validation_fraction
        train, validation = rest.select(~is_validation), rest.select(is_validation)
        description = (
            f"random per user, {1 - self.test_fraction:.0%} against {self.test_fraction:.0%} test, "
            f"seed {self.seed}; {self.validation_fraction:.0%} of the former for validation"
        )
        return Split(train, validation, test, None, None, description)


@dataclass(frozen=True)
class LeaveLastOut:
    """Each user's last interaction is test, the one before it validation.

    Equal times keep the order of the file. Without times the interactions must have an order. A
    repeated interaction counts as one more. All interactions of users with fewer than three stay in
    training. Users are cut at different instants, so a model may learn from interactions of others
    after a user's test.
    """

    def split(self, interactions: Interactions) -> Split:
        if not interactions.is_ordered:
            raise ValueError(
                "split 'leave-last-out' needs to know a user's last interaction, but the "
                "interactions have neither times nor an order; name their 'time' or 'order' column "
                "in the schema, write order: row if the file is in order, or use the split 'random'"
            )
        users_R, times_R = interactions.user_ids, interactions.times
        order_R = np.lexsort((users_R,) if times_R is None else (times_R, users_R))
        counts = np.bincount(users_R, minlength=interactions.n_users)
        ends = np.cumsum(counts)[counts >= 3]
        is_train_R = np.ones(len(interactions), bool)
        is_train_R[order_R[ends - 1]] = False
        is_train_R[order_R[ends - 2]] = False
        return Split(
            interactions.select(is_train_R),
            interactions.select(order_R[ends - 2]),
            interactions.select(order_R[ends - 1]),
            None,
            None,
            "leave-last-out: each user's last interaction is test, the one before validation",
        )


@dataclass(frozen=True)
class GlobalTime:
    """All users are cut at the same two instants, quantiles q of the interactions' times.

    Training is t <= q(cut - validation_fraction), then validation t <= q(cut), then test
    t <= q(cut + test_fraction); later rows are in no part. A model cannot learn from the future,
    and users or items may be new in test.

    Attributes:
        cut: fraction of the interactions before test.
        test_fraction: of all interactions, following the cut.
        validation_fraction: of all interactions, preceding the cut; 0 leaves it empty.
    """

    cut: float = 0.9
    test_fraction: float = 0.1
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        _check_fraction("global-time", "cut", self.cut)
        _check_fraction("global-time", "test_fraction", self.test_fraction)
        if self.validation_fraction != 0:
            _check_fraction("global-time", "validation_fraction", self.validation_fraction)
        if self.validation_fraction >= self.cut:
            raise ValueError(
                "split 'global-time': validation_fraction must be less than cut, got "
                f"{self.validation_fraction} and {self.cut}; lower it"
            )
        if self.cut + self.test_fraction > 1 + 1e-9:
            raise ValueError(
                "split 'global-time': cut + test_fraction must be <= 1, got "
                f"{self.cut} + {self.test_fraction}; lower one of them"
            )

    def split(self, interactions: Interactions) -> Split:
        times_R = interactions.times
        if times_R is None:
            raise ValueError(
                "split 'global-time' needs times, but the interactions have none; name their time "
                "column in the schema, or use the split 'random'"
            )
        levels = np.round([self.cut - self.validation_fraction, self.cut,
                           min(self.cut + self.test_fraction, 1.0)], 12)  # fmt: skip
        train_end, validation_end, test_end = np.quantile(times_R, levels)
        is_train_R = times_R <= train_end
        is_past_R = times_R <= validation_end
        description = (
            f"global time cut: first {levels[0]:.0%} of the interactions train, up to "
            f"{levels[1]:.0%} validation, up to {levels[2]:.0%} test"
        )
        return Split(
            interactions.select(is_train_R),
            interactions.select(is_past_R & ~is_train_R),
            interactions.select(~is_past_R & (times_R <= test_end)),
            int(np.floor(train_end)) + 1,
            int(np.floor(validation_end)) + 1,
            description,
        )


SPLITS: Mapping[str, Callable[..., Splitter]] = {
    "random": RandomPerUser,
    "leave-last-out": LeaveLastOut,
    "global-time": GlobalTime,
}


def make_split(name: str, options: Mapping[str, Any] | None = None) -> Splitter:
    """Build the splitter of a recipe's name and options.

    Raises:
        ValueError: an unknown name or option, or a value out of its range.
    """
    return make_named("split", SPLITS, name, options or {})


def rolling_cuts(
    n: int = 5, *, test_fraction: float = 0.1, validation_fraction: float = 0.1
) -> tuple[GlobalTime, ...]:
    """Return `n` global time cuts whose test parts follow one another up to the end of the data.

    The default is cuts .5, .6, .7, .8 and .9, which share no test row: a single test part is too
    small to compare two models.
    """
    first = 1 - n * test_fraction
    if n < 1 or first - validation_fraction <= 0:
        raise ValueError(
            f"rolling cuts: n must be >= 1, and n test parts and a validation part must leave room "
            f"for training, got n={n}, test_fraction={test_fraction}, "
            f"validation_fraction={validation_fraction}; lower n or a fraction"
        )
    return tuple(
        GlobalTime(round(first + i * test_fraction, 12), test_fraction, validation_fraction)
        for i in range(n)
    )


def _rank_in_user(
    user_ids_R: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw one number a row; return its rank within its user, as a fraction in (0, 1].

    All users of a single row count as one user.
    """
    is_single_R = np.bincount(user_ids_R)[user_ids_R] == 1
    user_ids_R = np.where(is_single_R, user_ids_R.max(initial=0) + 1, user_ids_R)
    order_R = np.lexsort((generator.random(len(user_ids_R)), user_ids_R))
    counts = np.bincount(user_ids_R)
    starts = np.cumsum(counts) - counts
    users_in_order_R = user_ids_R[order_R]
    rank_R = np.empty(len(user_ids_R))
    rank_R[order_R] = np.arange(1, len(user_ids_R) + 1) - starts[users_in_order_R]
    return rank_R / counts[user_ids_R]


def _check_fraction(split: str, field: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"split {split!r}: {field} must be between 0 and 1, got {value!r}")
