"""The figures of a card, from what `all_results.json` holds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hub_cards import Figure, GroupRow, ResultRow, UserGroups

PARTS = {"warm": "Users with interactions before", "cold": "Users never seen before"}


def result_rows(results: Mapping[str, Any], metrics: Sequence[str]) -> list[ResultRow]:
    """Return every model's row, the card's own first."""
    differences = results.get("differences", {})
    seconds, options = results.get("seconds", {}), results.get("options", {})
    return [
        ResultRow(
            name,
            _figures(model, metrics),
            difference=_difference(differences.get(name)),
            seconds=seconds.get(name),
            note=options.get(name, ""),
        )
        for name, model in results["models"].items()
    ]


def _figures(model: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Figure]:
    intervals = model.get("intervals", {})
    return {
        metric: Figure(model["metrics"][metric], *intervals.get(metric, (None, None)))
        for metric in metrics
        if metric in model["metrics"]
    }


def _difference(found: Mapping[str, Any] | None) -> Figure | None:
    return Figure(found["difference"], found["low"], found["high"]) if found else None


def result_parts(models: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, list[ResultRow]]:
    """Return the rows of warm and of cold users, by a title, where there are both."""
    own = next(iter(models.values()))
    return {
        f"{title} ({own[part]['n_users']:,})": [
            ResultRow(name, _figures(model[part], metrics))
            for name, model in models.items()
            if part in model
        ]
        for part, title in PARTS.items()
        if part in own
    }


def user_groups(results: Mapping[str, Any], metric: str) -> list[UserGroups]:
    """Return the groups of test users, the model's figure beside the strongest other's."""
    return [
        _groups_of_column(column, rows, metric)
        for column, rows in results.get("user_groups", {}).items()
        if rows
    ]


def _groups_of_column(column: str, rows: Sequence[Mapping[str, Any]], metric: str) -> UserGroups:
    own, *others = rows[0]["models"]
    # The strongest beside it, by the mean over all these users.
    strongest = max(others, key=lambda name: _mean_over(rows, name), default="")
    return UserGroups(
        column,
        metric,
        [
            GroupRow(
                row["group"],
                row["n_users"],
                _group_figure(row["models"][own]),
                _group_figure(row["models"][strongest]) if strongest else None,
            )
            for row in rows
        ],
        strongest,
    )


def _group_figure(found: Mapping[str, Any]) -> Figure:
    return Figure(found["value"], *found["interval"])


def _mean_over(rows: Sequence[Mapping[str, Any]], model: str) -> float:
    total = sum(row["n_users"] * row["models"][model]["value"] for row in rows)
    return float(total / sum(row["n_users"] for row in rows))


def measured_limits(models: Mapping[str, Any], k: int) -> Iterator[str]:
    """Yield what the figures say against the model: popularity bias, people never seen."""
    name, own = next(iter(models.items()))
    coverage = own["metrics"].get(f"coverage@{k}")
    if coverage is not None:
        others = {
            other: model["metrics"][f"coverage@{k}"]
            for other, model in models.items()
            if other != name and f"coverage@{k}" in model["metrics"]
        }
        widest = max(others, key=others.__getitem__, default="")
        beside = f" ({widest}: {100 * others[widest]:.1f} %)" if widest else ""
        yield (
            f"It favours what is popular: all test users' lists of {k} together hold "
            f"{100 * coverage:.1f} % of the catalogue{beside}{_rank_words(own, k)}."
        )
    if "cold" in own and "warm" in own:
        metric = f"NDCG@{k}"
        warm, cold = (own[part]["metrics"][metric] for part in ("warm", "cold"))
        yield (
            f"Somebody never seen is known by the columns alone: {metric} {cold:.3f} for the "
            f"{own['cold']['n_users']} cold test users, {warm:.3f} for the "
            f"{own['warm']['n_users']} warm ones. The two are other people with other test items, "
            "so compare models within a part, not the parts."
        )


def _rank_words(own: Mapping[str, Any], k: int) -> str:
    rank = own["metrics"].get(f"popularity_rank@{k}")
    if rank is None:
        return ""
    return (
        f", and a listed item is on average number {rank:.0f} of {own['n_items']:,} by popularity"
    )
