"""Why an item is recommended to a user: what each column of both adds to the score."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TOWERS = ("user", "item")
_COLOURS = {"user": "#2f6fab", "item": "#c46a1b"}
_MOST_LETTERS = 40


@dataclass(frozen=True)
class Explanation:
    """The score of one item for one user, taken apart.

    Attributes:
        item_key: of the item.
        title: of the item; empty where the table has none.
        score: as `Recommender.score` gives it.
        baseline_score: when every column of both is missing.
        user: what each user column adds; with `item` it sums to `score - baseline_score`.
        item: what each item column adds.
        user_values: what the model read in each user column, in words.
        item_values: the same of the item.
        standard_error: of the worst share; 0 where all orders of the columns were counted, which is
            up to 10 columns a tower.
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

    def ranked(self) -> list[tuple[str, str, str, float]]:
        """Return tower, column, value in words and share of every column, the strongest first."""
        rows = [
            (tower, column, getattr(self, f"{tower}_values")[column], share)
            for tower in TOWERS
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
        for place, share in enumerate(shares):
            axes.annotate(
                f"{share:+.2f}",
                (share, place),
                xytext=(3 if share >= 0 else -3, 0),
                textcoords="offset points",
                ha="left" if share >= 0 else "right",
                va="center",
                fontsize=8,
            )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.margins(x=0.12)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(
            f"what a column adds to the score: from {self.baseline_score:.2f} when nothing is "
            f"known to {self.score:.2f}",
            fontsize=9,
        )
        axes.set_title(self.title or self.item_key, loc="left")
        _add_legend(axes)
        figure.savefig(path, dpi=150)


def _add_legend(axes: Any) -> None:
    from matplotlib.patches import Patch

    axes.legend(
        handles=[Patch(color=_COLOURS[tower], label=tower) for tower in TOWERS],
        loc="lower right",
        frameon=False,
    )


def _label(column: str, value: str) -> str:
    text = f"{column} = {' '.join(value.split())}"
    # A dollar sign would start a formula.
    text = text.replace("$", r"\$")
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"
