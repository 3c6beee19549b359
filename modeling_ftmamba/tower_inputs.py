"""What one call gives a tower: tensors of records and, behind them, events."""

from typing import NamedTuple

from torch import Tensor, nn

from .history import Events
from .tokens import FeatureTokenizer


class TowerInputs(NamedTuple):
    """Inputs that fit the columns of a tower.

    Attributes:
        tensors: those of the records that there are.
        n_rows: number of records.
        events: None where the tower has no history.
    """

    tensors: dict[str, Tensor]
    n_rows: int
    events: Events | None


class GivenEvents(NamedTuple):
    """Events as `TowerNetwork.forward` is given them."""

    history: Tensor | None
    lengths: Tensor | None
    features: Tensor | None


def fitting_inputs(
    network: nn.Module, tensors: dict[str, Tensor | None], given: GivenEvents
) -> TowerInputs:
    """Return what is given to a tower: no history as an empty one, in its parameters' type.

    Raises:
        ValueError: a tensor is absent, superfluous or does not fit.
    """
    tokenizer, tower = network.tokenizer, network.name
    assert isinstance(tokenizer, FeatureTokenizer)
    tokenizer.check(tensors, str(tower))
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    sizes = {name: len(tensor) for name, tensor in present.items()}
    if tokenizer.history is None:
        if any(tensor is not None for tensor in given):
            raise ValueError(
                f"the {tower} tower has no column of kind 'history', got a history; leave it out, "
                "or train a model with such a column"
            )
        return TowerInputs(present, next(iter(sizes.values()), 1), None)
    history, lengths, features = given
    if history is None:
        alone = 1 if lengths is None else len(lengths)
        history = no_events(network, next(iter(sizes.values()), alone))
    sizes["history"] = len(history)
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the {tower} tower's tensors must have one number of records, got {sizes}"
        )
    events = tokenizer.history.events(history, lengths, features)
    embeds = events.embeds.to(next(network.parameters()).dtype)
    return TowerInputs(present, len(history), events._replace(embeds=embeds))


def no_events(network: nn.Module, n_rows: int) -> Tensor:
    """Return the history (B, 0, E) of users who did nothing yet."""
    tokenizer = network.tokenizer
    assert isinstance(tokenizer, FeatureTokenizer)
    assert tokenizer.history is not None
    return next(network.parameters()).new_zeros(n_rows, 0, tokenizer.history.embedding_size)
