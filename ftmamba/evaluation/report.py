"""Results as a person looks at them: a table in a terminal and in a notebook, pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftmamba.evaluation.result import N_RESAMPLES, Evaluation
from ftmamba.pictures import draw_comparison, draw_learning_curves

SHOWN = ("HR", "R", "MRR", "coverage")
"""Metrics beside NDCG, at the same length of the list."""


@dataclass(frozen=True)
class Report:
    """How good the models of a run are on its test part, the run's own first.

    NDCG of warm and of cold users is given separately if there are both.

    Attributes:
        results: as in a checkpoint's `all_results.json`.
    """

    results: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        evaluations: Mapping[str, Evaluation],
        *,
        split: str = "",
        n_resamples: int = N_RESAMPLES,
    ) -> "Report":
        """Report on evaluations by model, in the order of the rows."""
        models = {
            name: one.to_dict(n_resamples=n_resamples)
            for name, one in evaluations.items()
            if len(one)
        }
        return cls({"models": models, "split": split})

    @property
    def models(self) -> Mapping[str, Mapping[str, Any]]:
        """Model to its `metrics`, their `intervals`, `n_users` and `protocol`."""
        return self.results.get("models", {})  # type: ignore[no-any-return]

    def rows(self) -> list[list[str]]:
        """Return the cells of the table, the header first."""
        k = self._longest
        ndcg = f"NDCG@{k}"
        parts = [p for p in ("warm", "cold") if any(p in own for own in self.models.values())]
        sizes = {
            part: max(own[part]["n_users"] for own in self.models.values() if part in own)
            for part in parts
        }
        rows = [
            [
                "model",
                f"{ndcg} [95 %]",
                *(f"{name}@{k}" for name in SHOWN),
                *(f"{part} ({sizes[part]}) {ndcg}" for part in parts),
            ]
        ]
        for name, own in self.models.items():
            shown = [f"{own['metrics'][f'{metric}@{k}']:.3f}" for metric in SHOWN]
            shown += [_with_interval(own.get(part), ndcg) for part in parts]
            rows.append([name, _with_interval(own, ndcg), *shown])
        return rows

    def __str__(self) -> str:
        """Return a Markdown table that also reads well in a terminal."""
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([self.protocol, "", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it."""
        header, *rows = self.rows()
        lines = [_html_row(header, "th"), *(_html_row(row, "td") for row in rows)]
        return f"<p>{escape(self.protocol)}</p><table>{''.join(lines)}</table>"

    def plot_learning_curves(self) -> "Picture":
        """Draw the loss and the validation score by epoch; needs matplotlib."""
        training = self.results.get("training", {})
        metric = self.results.get("metric", "validation score")
        return Picture.of(
            draw_learning_curves(
                training.get("history", ()), metric=metric, best_epoch=training.get("best_epoch")
            )
        )

    def plot_comparison(self, metric: str = "") -> "Picture":
        """Draw each model's mean and interval; needs matplotlib.

        Args:
            metric: such as `HR@10`; empty takes NDCG of the longest list.
        """
        return Picture.of(draw_comparison(self.models, metric or f"NDCG@{self._longest}"))

    @property
    def _longest(self) -> int:
        """The length of the longest list."""
        names = (name for own in self.models.values() for name in own["metrics"])
        return max((int(name.partition("@")[2]) for name in names if "@" in name), default=10)

    @property
    def protocol(self) -> str:
        """How the models were judged, in words."""
        own = next(iter(self.models.values()), {})
        return "; ".join(filter(None, (self.results.get("split", ""), own.get("protocol", ""))))


@dataclass(frozen=True)
class Picture:
    """A PNG, which a notebook shows."""

    png: bytes

    @classmethod
    def of(cls, png: bytes | None) -> "Picture":
        """Wrap a picture.

        Raises:
            ImportError: there is none, without matplotlib.
            ValueError: there is none, without figures to draw.
        """
        if png is not None:
            return cls(png)
        if find_spec("matplotlib") is None:
            raise ImportError("a picture needs matplotlib; pip install 'ftmamba[plots]'")
        raise ValueError("the results hold nothing to draw; train, or load a whole checkpoint")

    def _repr_png_(self) -> bytes:
        return self.png

    def save(self, path: str | Path) -> None:
        """Write the PNG."""
        Path(path).write_bytes(self.png)


def _with_interval(own: Mapping[str, Any] | None, metric: str) -> str:
    if own is None:
        return "-"
    low, high = own["intervals"][metric]
    return f"{own['metrics'][metric]:.3f} [{low:.3f}, {high:.3f}]"


def _html_row(cells: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
