"""Pictures of a run's results as PNG: learning curves, and the models beside each other."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT, _LOSS, _SCORE = "#374151", "#d1d5db", "#4f46e5", "#ea580c"
_INCHES, _DOTS = (8.0, 2.9), 150


def draw_learning_curves(
    history: Sequence[Mapping[str, float]],
    *,
    metric: str = "validation score",
    best_epoch: int | None = None,
) -> bytes | None:
    """Return a PNG of the loss and, where there is one, the validation score by epoch.

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
    for row in scored:
        if row["epoch"] == best_epoch:
            best = (row["epoch"], row["score"])
            panels[1].plot([best[0]], [best[1]], "o", color=_SCORE, markersize=7)
            panels[1].margins(y=0.2)
            panels[1].annotate(
                f"{row['score']:.4f}", best, xytext=(0, 8), textcoords="offset points",
                ha="right", fontsize=8, color=_INK,
            )  # fmt: skip
    return _png(figure)


def draw_comparison(models: Mapping[str, Mapping[str, Any]], metric: str) -> bytes | None:
    """Return a PNG of each model's mean with its interval, the run's own on top and in colour.

    Returns:
        None without matplotlib, or where no model has the metric.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    found = [(name, one) for name, one in models.items() if metric in one["intervals"]][::-1]
    if not found:
        return None
    own = next(iter(models))
    figure = Figure(figsize=(_INCHES[0] * 0.75, 0.9 + 0.32 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, (name, one) in enumerate(found):
        value, (low, high) = one["metrics"][metric], one["intervals"][metric]
        colour = _LOSS if name.startswith(own) else _FAINT
        axes.barh(row, value, height=0.62, color=colour)
        axes.plot([low, high], [row, row], color=_INK, linewidth=1.2)
        axes.annotate(
            f"{value:.3f}", (high, row), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=8, color=_INK,
        )  # fmt: skip
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.set_title(f"{metric}, 95 % interval over users", loc="left", fontsize=10, color=_INK)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    _plain(axes, grid="x")
    return _png(figure)


def _png(figure: "Figure") -> bytes:
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
    _plain(axes, grid="y")


def _plain(axes: "Axes", *, grid: Literal["x", "y"]) -> None:
    axes.tick_params(labelsize=8, color=_FAINT, labelcolor=_INK)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=_FAINT, linewidth=0.6, alpha=0.7)
    for side in axes.spines.values():
        side.set_visible(False)
