"""What an epoch reads: interactions row by row, or windows of users' histories."""

from ftmamba.data.batches import InteractionBatches
from ftmamba.data.encoded import EncodedData
from ftmamba.data.sequence_batches import SequenceBatches
from ftmamba.recipe import TrainingRecipe
from modeling_ftmamba.configuration_ftmamba import history_of

Batches = InteractionBatches | SequenceBatches
LONGEST_WINDOW = 1000
"""Events of a window where the history's column sets no max_length."""


def make_batches(
    recipe: TrainingRecipe, data: EncodedData, *, seed: int, rank: int, n_ranks: int
) -> Batches:
    """Return the batches of a recipe.

    Raises:
        ValueError: sequences are asked for and the users have no history, or the items have
            popularity columns.
    """
    if not recipe.sequences:
        return InteractionBatches(
            data.interactions,
            batch_size=recipe.batch_size,
            seed=seed,
            rank=rank,
            n_ranks=n_ranks,
            in_stretches=recipe.batch_order == "time",
        )
    column = history_of(data.extractor.columns("user"))
    if column is None or data.histories is None:
        raise ValueError(
            "training.sequences needs a column of kind 'history' among the users' columns; add "
            "history: {kind: history, max_length: 200} to the schema, or leave training.sequences "
            "empty"
        )
    if data.popularity_slots:
        raise ValueError(
            "training.sequences reads events of all times at once, but the items' columns "
            f"{', '.join(data.popularity_names)} are as of one moment, which would tell of what "
            "came later; remove popularity_days, or leave training.sequences empty"
        )
    return SequenceBatches(
        data.histories,
        max_length=column.max_length or LONGEST_WINDOW,
        batch_size=recipe.batch_size,
        seed=seed,
        windows=recipe.sequences,
        rank=rank,
        n_ranks=n_ranks,
    )
