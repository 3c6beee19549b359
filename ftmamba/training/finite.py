"""Numbers that are not finite: found, and traced to the rows they come from."""

from dataclasses import replace

import torch
from torch import Tensor

from ftmamba.data.encoded import EncodedData
from ftmamba.training.embedding import PairEmbedder
from ftmamba.training.feed import Batch

N_SHOWN = 5


def check_features(data: EncodedData) -> None:
    """Raise ValueError where an encoded record holds an infinite number; NaN means missing."""
    for table, tensors in (("users", data.users), ("items", data.items)):
        for name, values in tensors.items():
            if values.is_floating_point():
                infinite = values.isinf().any(-1).nonzero().flatten()
                if len(infinite):
                    raise ValueError(
                        f"table {table!r} has infinite values in its encoded {name!r} columns in "
                        f"{shown(infinite, 'row')}; correct them or leave them empty"
                    )


@torch.no_grad()
def explain_loss(loss: float, *, step: int, batch: Batch, embedder: PairEmbedder) -> str:
    """Say which training interactions made a loss or a gradient that is not finite."""
    cause = _cause_in_windows(batch) if "rows" not in batch else _cause_in_rows(batch, embedder)
    return (
        f"training stopped at step {step + 1}: the loss or its gradient is not finite (loss "
        f"{loss}); {cause}. Look at these rows, or lower learning_rate or max_grad_norm"
    )


def _cause_in_rows(batch: Batch, embedder: PairEmbedder) -> str:
    unwrapped = replace(embedder, model=embedder.base)
    inputs = unwrapped.gather(batch["user_ids"], batch["item_ids"], batch.get("popularity"))
    users_BD, items_BD = unwrapped.embed(inputs)
    bad_B = ~(users_BD.isfinite().all(-1) & items_BD.isfinite().all(-1)).cpu()
    rows = batch["rows"][bad_B]
    if len(rows):
        return f"the embeddings of {shown(rows, 'training row')} are not finite"
    return f"all embeddings of {shown(batch['rows'], 'training row')} are finite"


def _cause_in_windows(batch: Batch) -> str:
    return f"it came in the histories of the table's {shown(batch['user_ids'], 'user row')}"


def shown(rows: Tensor, noun: str) -> str:
    """Return "rows 3, 5, 8 and 12 more"."""
    first = ", ".join(str(row) for row in rows[:N_SHOWN].tolist())
    rest = f" and {len(rows) - N_SHOWN} more" if len(rows) > N_SHOWN else ""
    return f"{noun}{'s' if len(rows) > 1 else ''} {first}{rest}"
