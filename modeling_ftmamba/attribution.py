"""Why an item is recommended: what each column of the user and of the item adds to the score.

The baseline is the score when nothing is known: every column of both is missing, as the extractor
encodes it. Each column gets its Shapley value, so that baseline and shares add up to the score.

Shapes: N coalitions, C columns of a tower, S slots of a tensor, E embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .catalogue_file import Catalogue, check_records
from .configuration_ftmamba import Column, columns_of_tensor, history_of
from .shapley import Embed, Shares, play, shares

Inputs = Mapping[str, Tensor]
"""Encoded records as the extractor names them, such as `user_numeric`."""

_COALITIONS_AT_A_TIME = 1024


def explain(
    model: Any,
    extractor: Any,
    catalogue: Catalogue,
    record: Mapping[str, Any],
    item_key: str,
    history: Inputs | None = None,
    taken: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """Explain the score of one item for one user.

    Args:
        model: both towers, in evaluation mode.
        extractor: of the same checkpoint.
        catalogue: of the same checkpoint.
        record: raw columns of the user.
        item_key: of the item.
        history: what the user has done, as `HistoryReader` gives it; it counts as one column.
        taken: what of the catalogue is in it, as `HistoryReader.taken` gives it.

    Returns:
        What `ftmamba.explanations.Explanation` holds: `user` and `item`, the share of every column;
        `user_values` and `item_values`, what the model read there; `score`, `baseline_score`,
        `standard_error`, `item_key` and `title`.

    Raises:
        ValueError: there is no such item, a value has the wrong type, or the catalogue does not
            hold its items' records.
    """
    row = catalogue.row(item_key)
    item = catalogue.record(row)
    if not item and extractor.columns("item"):
        raise ValueError(
            "the catalogue holds embeddings only, so the score of item "
            f"{item_key!r} cannot be taken apart: its records were too wide to be kept, or an "
            "earlier release wrote it; save the checkpoint again"
        )
    check_records(catalogue, extractor.columns("item"), slice(row, row + 1))
    user = extractor(users=[dict(record)], return_tensors="pt")
    found = attribute(model, extractor, user, item, history)
    if taken is not None and bool((taken[1] == row).any()):
        found = _with_repeat(found, model, extractor)
    return {
        "item_key": item_key,
        "title": catalogue.titles[row],
        "score": found.score,
        "baseline_score": found.baseline_score,
        "standard_error": found.standard_error,
        "user": _by_name(extractor.columns("user"), found.user),
        "item": _by_name(extractor.columns("item"), found.item),
        "user_values": {**extractor.describe("user", user), **_described(extractor, history)},
        "item_values": extractor.describe("item", item),
    }


@torch.inference_mode()
def attribute(
    model: Any, extractor: Any, user: Inputs, item: Inputs, history: Inputs | None = None
) -> Shares:
    """Return the share of every column in the score of one encoded user and one encoded item."""
    users, items = extractor.columns("user"), extractor.columns("item")
    embed_users = model.get_user_embeddings
    embed_user = _coalitions(embed_users, users, user, extractor(users=[{}]), history)
    embed_item = _coalitions(model.get_item_embeddings, items, item, extractor(items=[{}]))
    device = model.temperature.device
    return shares(
        play(lambda has_come_NC: embed_user(has_come_NC.to(device)), len(users)),
        play(lambda has_come_NC: embed_item(has_come_NC.to(device)), len(items)),
        temperature=float(model.temperature),
    )


def _with_repeat(found: Shares, model: Any, extractor: Any) -> Shares:
    """Add the bias of a repeat: it comes with the history, in whatever order columns come."""
    columns = extractor.columns("user")
    bias = float((model.repeat_bias / model.temperature).detach())
    user_C = found.user.clone()
    user_C[columns.index(history_of(columns))] += bias
    return replace(found, user=user_C, score=found.score + bias)


def _coalitions(
    embed: Callable[..., Tensor],
    columns: Sequence[Column],
    record: Inputs,
    missing: Inputs,
    history: Inputs | None = None,
) -> Embed:
    """Return what embeds a record with only some of its columns, the others missing."""
    column = history_of(columns)
    slots = {name: _column_of_slot(columns, name.split("_", 1)[1]) for name in record}

    def embed_coalitions(has_come_NC: Tensor) -> Tensor:
        device, parts = has_come_NC.device, []
        for has_come in has_come_NC.split(_COALITIONS_AT_A_TIME):
            inputs = {
                name: torch.where(
                    has_come[:, slots[name].to(device)],
                    values.to(device),
                    missing[name].to(device),
                )
                for name, values in record.items()
            }
            if column is not None and history:
                inputs |= _history_of_some(history, has_come[:, columns.index(column)])
            parts.append(embed(**inputs))
        return torch.cat(parts)

    return embed_coalitions


def _history_of_some(history: Inputs, has_come_N: Tensor) -> Inputs:
    """Return a user's history for each coalition: whole, or no events at all."""
    n_rows, device = len(has_come_N), has_come_N.device
    inputs = {
        name: values.to(device).expand(n_rows, *values.shape[1:])
        for name, values in history.items()
    }
    lengths_N = inputs["user_history_lengths"] * has_come_N
    return {**inputs, "user_history_lengths": lengths_N}


def _described(extractor: Any, history: Inputs | None) -> dict[str, str]:
    """Return in words what the model read of a history."""
    column = history_of(extractor.columns("user"))
    if column is None:
        return {}
    n_events = int(history["user_history_lengths"][0]) if history else 0
    return {column.name: f"{n_events} event{'' if n_events == 1 else 's'}"}


def _column_of_slot(columns: Sequence[Column], tensor: str) -> Tensor:
    """Return the number of the column (S,) to which each slot of a tensor belongs."""
    return torch.tensor(
        [
            columns.index(column)
            for column in columns_of_tensor(columns, tensor)
            for _ in range(column.width)
        ],
        dtype=torch.int64,
    )


def _by_name(columns: Sequence[Column], values_C: Tensor) -> dict[str, float]:
    return {column.name: value for column, value in zip(columns, values_C.tolist(), strict=True)}
