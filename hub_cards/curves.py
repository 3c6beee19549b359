"""The learning curves as a picture."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES_FILE = "learning_curves.png"

_INK, _FAINT, _LOSS, _SCORE = "#374151", "#d1d5db", "#4f46e5", "#ea580c"
_INCHES, _DOTS = (8.0, 2.9), 150


def draw_learning_curves(
    history: Sequence[Mapping[str, float]],
    *,
    metric: str = "validation score",
    best_epoch: int | None = None,
) -> bytes | None:
    """Return a PNG of the loss and, where there is one, the validation score by epoch.

    Args:
        history: for each epoch its `epoch`, `loss` and, where validated, `score`.
        metric: what the score is.
        best_epoch: marked in the picture.

    Returns:
        None without matplotlib, or where there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    scored = [row for row in history if "score" in row]
    if not history:
        return None
    n_panels = 1 + bool(scored)
    figure = Figure(figsize=(_INCHES[0] * n_panels / 2, _INCHES[1]), layout="constrained")
    panels = figure.subplots(1, n_panels, squeeze=False, sharex=True)[0]
    _draw(panels[0], history, "loss", colour=_LOSS, title="training loss")
    if scored:
        _draw(panels[1], scored, "score", colour=_SCORE, title=f"{metric} on validation")
        _mark_best(panels[1], scored, best_epoch)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=_DOTS, metadata={"Software": None})
    return picture.getvalue()


def _draw(
    axes: "Axes", rows: Sequence[Mapping[str, float]], name: str, *, colour: str, title: str
) -> None:
    from matplotlib.ticker import MaxNLocator

    marker: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(rows) <= 40 else {}
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [row[name] for row in rows], color=colour, linewidth=1.8, **marker)
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.set_xlabel("epoch", fontsize=9, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8, color=_FAINT, labelcolor=_INK)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6, alpha=0.7)
    for side in axes.spines.values():
        side.set_visible(False)


def _mark_best(axes: "Axes", scored: Sequence[Mapping[str, float]], best_epoch: int | None) -> None:
    for row in scored:
        if row["epoch"] == best_epoch:
            axes.plot([row["epoch"]], [row["score"]], "o", color=_SCORE, markersize=7)
            axes.margins(y=0.2)
            axes.annotate(
                f"{row['score']:.4f}",
                (row["epoch"], row["score"]),
                xytext=(0, 8),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=_INK,
            )
