"""What a person sees at the end of a run: recommendations for somebody known and somebody new."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftmamba.data.interactions import Interactions
from ftmamba.data.tables import Tables
from ftmamba.recipe import ExamplesRecipe
from ftmamba.recommender import Recommendation, Recommender

N_SHOWN = 10
"""Items listed; fewer where the catalogue is smaller."""
WIDTH = 44


def tell_examples(
    recommender: Recommender, recipe: ExamplesRecipe, tables: Tables, known: Interactions
) -> str:
    """Lay out ten recommendations beside what a user liked, and ten for a record typed in.

    Args:
        recommender: loaded from the finished checkpoint.
        recipe: which user, and which record; empty ones are left out.
        tables: for titles and records.
        known: interactions before the test: what the user liked.
    """
    n_shown = min(N_SHOWN, len(recommender.catalogue))
    parts = []
    if recipe.user_key:
        row = tables.user_row(recipe.user_key)
        liked = _liked(row, tables, known)
        recommended = recommender.recommend(user_key=recipe.user_key, k=n_shown)
        who = _words(tables.user_record(row), leave_out=tables.schema.users.key)
        parts.append(
            _side_by_side(
                f"User {recipe.user_key} ({who})",
                ("liked, newest first", liked),
                ("recommended", _titles(recommended)),
            )
        )
    if recipe.record:
        recommended = recommender.recommend(record=recipe.record, k=n_shown)
        lines = [f"Somebody never seen ({_words(recipe.record)})", "  recommended"]
        parts.append("\n".join([*lines, *(f"  {title}" for title in _titles(recommended))]))
    return "\n\n".join(parts)


def _liked(row: int, tables: Tables, known: Interactions) -> list[str]:
    mine = known.select(known.user_ids == row)
    order = np.arange(len(mine)) if mine.times is None else np.argsort(mine.times, kind="stable")
    items = mine.item_ids[order[::-1][:N_SHOWN]]
    return [tables.item_titles[item] or tables.item_keys[item] for item in items]


def _titles(recommended: Sequence[Recommendation]) -> list[str]:
    return [f"{one.score:7.2f}  {one.title or one.item_key}" for one in recommended]


def _words(record: Mapping[str, Any], leave_out: str = "") -> str:
    return ", ".join(f"{name} {value}" for name, value in record.items() if name != leave_out)


def _side_by_side(
    heading: str, left: tuple[str, Sequence[str]], right: tuple[str, Sequence[str]]
) -> str:
    n_rows = max(len(left[1]), len(right[1]))
    columns = [[title, *lines, *[""] * (n_rows - len(lines))] for title, lines in (left, right)]
    rows = zip(*columns, strict=True)
    return "\n".join([heading, *(f"  {a[:WIDTH]:<{WIDTH}}  {b}".rstrip() for a, b in rows)])
