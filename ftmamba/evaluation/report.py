"""Tables of results for terminals, READMEs and cards."""

from collections.abc import Mapping

from ftmamba.evaluation.bootstrap import N_RESAMPLES
from ftmamba.evaluation.result import Evaluation


def results_table(
    evaluations: Mapping[str, Evaluation],
    *,
    k: int = 10,
    n_resamples: int = N_RESAMPLES,
) -> str:
    """Lay out models as the rows of a Markdown table that also reads well in a terminal.

    If there are both, NDCG is given for warm and for cold users apart.

    Args:
        evaluations: model -> its evaluation, in the order of the rows.
        k: length of the list.
        n_resamples: of the bootstrap behind the 95 % intervals.
    """
    header = ["model", f"NDCG@{k} [95 %]"]
    header += [f"{name}@{k}" for name in ("HR", "R", "MRR", "coverage")]
    n_warm, n_cold = _n_warm_and_cold(evaluations)
    if n_warm and n_cold:
        header += [f"warm ({n_warm}) NDCG@{k}", f"cold ({n_cold}) NDCG@{k}"]
    rows = []
    for model, evaluation in evaluations.items():
        row = [model, _with_interval(evaluation, f"NDCG@{k}", n_resamples)]
        row += [f"{evaluation.mean(f'{name}@{k}'):.3f}" for name in ("HR", "R", "MRR")]
        row.append(f"{evaluation.coverage(k):.3f}")
        if n_warm and n_cold:
            for part in (evaluation.warm, evaluation.cold):
                row.append(_with_interval(part, f"NDCG@{k}", n_resamples))
        rows.append(row)
    return _aligned([header, *rows])


def _n_warm_and_cold(evaluations: Mapping[str, Evaluation]) -> tuple[int, int]:
    """Count the warm and the cold rows of the models, which are the same under one split."""
    return (
        max((int(e.is_warm.sum()) for e in evaluations.values()), default=0),
        max((int((~e.is_warm).sum()) for e in evaluations.values()), default=0),
    )


def _with_interval(evaluation: Evaluation, metric: str, n_resamples: int) -> str:
    if not len(evaluation):
        return "-"
    low, high = evaluation.interval(metric, n_resamples=n_resamples)
    return f"{evaluation.mean(metric):.3f} [{low:.3f}, {high:.3f}]"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *rest = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    header, *body = rows
    return "\n".join([line(header), rule, *(line(row) for row in body)])
