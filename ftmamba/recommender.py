"""The front door: fit a recommender on tables or load one, then recommend, save and share it.

Training imports much that recommending does without, so it is imported where it begins.

Shapes: U users, I items, E embedding, K recommendations.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftmamba.checkpoint import Checkpoint, load_checkpoint, load_to_recommend, save_checkpoint
from ftmamba.evaluation.report import Report
from ftmamba.explanations import Explanation, explain
from ftmamba.known_users import KnownUsers, records_of
from modeling_ftmamba.catalogue import top_k
from modeling_ftmamba.encoders import WrongValueError, text_table
from modeling_ftmamba.processing_ftmamba import Event, HistoryReader

if TYPE_CHECKING:
    from ftmamba.data.readers import Source
    from ftmamba.recipe import Recipe
    from hub_cards.push import Pushed

Record = Mapping[str, Any]

_SCORES_AT_ONCE = 2**24
_USERS_AT_ONCE = 1024


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item_key: the item's key in the raw table.
        score: higher is better; comparable between the items of one call only.
        title: what to show a person; empty where the table has no title.
    """

    item_key: str
    score: float
    title: str


class Recommender:
    """A trained model with its catalogue, ready to answer.

    A score is the inner product of the user's and the item's embedding over the temperature, with
    the `repeat_bias` of a model that has one for items of the user's history, plus what the
    catalogue's `Blend` adds, if it has one. Equal scores are ordered as in the catalogue.

    Attributes:
        catalogue: the items that can be recommended.
        users: known by key, where the checkpoint holds any.

    Examples:
        >>> recommender = Recommender.from_pretrained("runs/quickstart")  # doctest: +SKIP
        >>> recommender.recommend(user_key="42", k=10)  # doctest: +SKIP
        >>> recommender.recommend(record={"age": 31, "occupation": "doctor"})  # doctest: +SKIP
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str | torch.device | None = None) -> None:
        self._checkpoint = checkpoint
        self._reload: Callable[[], Checkpoint] = lambda: checkpoint
        self._model: Any = checkpoint.model.train(False)
        self._model.to(device or checkpoint.model.device)
        self._extractor = checkpoint.extractor
        self.catalogue = checkpoint.catalogue
        self.users = checkpoint.users
        items_IE = torch.from_numpy(checkpoint.catalogue.embeddings)
        self._items_IE = items_IE.to(self._model.device)
        self._lengths_I = torch.linalg.vector_norm(self._items_IE, dim=1).clamp(min=1e-12)
        self._history = HistoryReader(self._model, self._extractor, self.catalogue, self._items_IE)

    def __repr__(self) -> str:
        known = "no known users" if self.users is None else f"{len(self.users):,} known users"
        return f"Recommender({len(self.catalogue):,} items, {known})"

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device | None = None,
    ) -> "Recommender":
        """Load a checkpoint from a folder or from the Hub; see `load_to_recommend`.

        The installed `modeling_ftmamba` runs, not the code in the checkpoint.
        """
        where = {"revision": revision, "token": token}
        recommender = cls(load_to_recommend(folder_or_repo, **where), device=device)
        recommender._reload = partial(load_checkpoint, folder_or_repo, **where)
        return recommender

    @classmethod
    def fit(
        cls,
        interactions: "Source",
        items: "Source | None" = None,
        users: "Source | None" = None,
        **options: Any,
    ) -> "Recommender":
        """Train on tables: paths, pandas, polars or Arrow tables, `datasets`, lists of mappings.

        What `options` leave open is chosen to fit the tables, and logged with the reason. Nothing
        is written unless `output_dir` is given.

        Args:
            interactions: who took what; with times or an order if there are any.
            items: columns of the items; None knows them by their keys alone.
            users: columns of the users; None likewise.
            options: of the recipe, by the names of their flags, such as `num_epochs=5`.

        Raises:
            ValueError: an unknown option, or tables that cannot be read.

        Examples:
            >>> recommender = Recommender.fit("ratings.csv", "movies.csv")  # doctest: +SKIP
            >>> recommender.evaluation  # doctest: +SKIP
        """
        from ftmamba.run import fit_tables

        tables = {"interactions": interactions, "items": items, "users": users}
        return cls(fit_tables(tables, options).checkpoint)

    @property
    def evaluation(self) -> Report:
        """How good the model was on the test part, beside the baselines."""
        return Report(self._checkpoint.results)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint; `from_pretrained` reads it."""
        save_checkpoint(folder, self._reload())

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None
    ) -> "Pushed":
        """Push the checkpoint with its card, without the known users; return the commit."""
        from huggingface_hub import HfApi

        from hub_cards.push import Destination, push_checkpoint

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            destination = Destination(repo_id, private=private)
            return push_checkpoint(folder, destination, api=HfApi(token=token))

    @torch.inference_mode()
    def recommend(
        self,
        *,
        user_key: str | None = None,
        record: Record | None = None,
        k: int = 10,
        exclude_seen: bool | None = None,
        exclude: Iterable[object] = (),
    ) -> list[Recommendation]:
        """Return the k best items for one user, best first.

        Args:
            user_key: a user of the training tables. Give either this or `record`.
            record: raw columns of any user; absent columns are missing values.
            k: how many; fewer come back only where the items left out leave fewer.
            exclude_seen: leave out the seen items of a known user, or those of a record's history;
                None does as the evaluation did: they are left out unless its `mask_seen` is false.
            exclude: keys of further items to leave out; keys of no item are ignored.

        Raises:
            ValueError: none or both of `user_key` and `record`, an unknown key, a value of the
                wrong type in the record, or `k` out of range.
        """
        return self._ranked(
            None if user_key is None else [user_key],
            None if record is None else [record],
            k,
            exclude=exclude,
            exclude_seen=exclude_seen,
        )[0]

    @torch.inference_mode()
    def recommend_batch(
        self,
        *,
        user_keys: Iterable[str] | None = None,
        records: "Source | None" = None,
        k: int = 10,
        exclude_seen: bool | None = None,
    ) -> list[list[Recommendation]]:
        """Return the k best items for each of several users, in their order.

        See `recommend` for the arguments; `records` may also be a table, one row a user: pandas,
        polars, Arrow, `datasets`, a file, or a generator. Memory stays bounded however many users
        are given.
        """
        if isinstance(user_keys, str | bytes):
            raise ValueError(f"user_keys must be a list, got {user_keys!r:.80}; write [user_key]")
        if isinstance(user_keys, pa.Array | pa.ChunkedArray):
            user_keys = user_keys.to_pylist()
        if records is not None and not isinstance(records, list | tuple):
            from ftmamba.data.readers import is_rows, read_table

            rows: Any = records
            records = list(rows) if is_rows(rows) else records_of(read_table(rows))
        return self._ranked(user_keys, records, k, exclude_seen=exclude_seen)

    @torch.inference_mode()
    def similar_items(self, item_key: str, k: int = 10) -> list[Recommendation]:
        """Return the k items nearest to one by the cosine of their embeddings, without itself.

        The cosine, not the inner product, for the latter also grows with an item's popularity.
        """
        _check_k(k, len(self.catalogue) - 1)
        row = self.catalogue.row(item_key)
        dots_I = self._items_IE @ self._items_IE[row]
        cosines_I = dots_I / (self._lengths_I * self._lengths_I[row])
        cosines_I[row] = -torch.inf
        return self._recommendations(*top_k(cosines_I[None], k))[0]

    @torch.inference_mode()
    def user_embedding(self, record: Record) -> NDArray[np.float32]:
        """Return the embedding (E,) of a raw record."""
        inputs = self._inputs([record], self._history.events([record]))
        users_UE = _finite(self._model.get_user_embeddings(**inputs))
        embedding: NDArray[np.float32] = users_UE[0].to(self._items_IE.dtype).cpu().numpy()
        return embedding

    @torch.inference_mode()
    def score(self, record: Record, item_key: str) -> float:
        """Return the score of one item for a raw record."""
        row = self.catalogue.row(item_key)
        events = self._history.events([record])
        users_UE = self._model.get_user_embeddings(**self._inputs([record], events))
        return float(self._scores(users_UE, self._history.rows(events))[0, row])

    def explain(self, user: Record | str | int, item_key: str) -> Explanation:
        """Say what each column of a user and of an item adds to their score.

        See `ftmamba.explanations.explain`.

        Args:
            user: raw columns of any user, or the key of a known user.
            item_key: of an item of the catalogue.

        Raises:
            ValueError: an unknown key, a value of the wrong type, or a checkpoint whose catalogue
                holds embeddings only.
        """
        events = None
        if not isinstance(user, Mapping):
            users = self._known_users()
            row = users.row(user)
            user, events = users.record(row), users.events(row)
        return explain(self._model, self._extractor, self.catalogue, user, item_key, events)

    def _ranked(
        self,
        user_keys: Iterable[str] | None,
        records: Any,
        k: int,
        *,
        exclude_seen: bool | None,
        exclude: Iterable[object] = (),
    ) -> list[list[Recommendation]]:
        _check_k(k, len(self.catalogue))
        if exclude_seen not in (None, True, False):
            raise ValueError(f"exclude_seen must be True, False or None, got {exclude_seen!r:.80}")
        if (user_keys is None) == (records is None):
            given = "none" if records is None else "both"
            raise ValueError(f"give exactly one of user_key and record (or a list), got {given}")
        for row, record in enumerate(records or ()):
            if not isinstance(record, Mapping):
                rule = "must be a dict of column name to value"
                raise WrongValueError("record", row, record, rule=rule)
        excluded = self.catalogue.excluded(exclude)
        users = None if user_keys is None else self._known_users()
        keys = () if user_keys is None else user_keys
        rows_U = np.array([users.row(key) for key in keys] if users else [], np.int64)
        n_users = len(rows_U) if users is not None else len(records or ())
        size = max(1, min(_USERS_AT_ONCE, _SCORES_AT_ONCE // len(self.catalogue)))
        ranked: list[list[Recommendation]] = []
        for start in range(0, n_users, size):
            rows = rows_U[start : start + size]
            if users is None:
                block: Any = list((records or ())[start : start + size])
                events = self._history.events(block)
            else:
                block = users.records.take(rows)
                reads_history = self._history.column is not None
                events = [users.events(row) if reads_history else [] for row in rows]
            users_UE = self._model.get_user_embeddings(**self._inputs(block, events))
            seen = self._history.rows(events)
            scores_UI = self._scores(users_UE, seen)
            if users is not None:
                seen = [users.seen.of(row) for row in rows]
            best = self._history.best(
                scores_UI, k, seen, exclude_seen=exclude_seen, exclude=excluded
            )
            ranked += self._recommendations(*best)
        return ranked

    def _scores(self, users_UE: Tensor, rows: Sequence[NDArray[np.int64]]) -> Tensor:
        return self._history.scores(users_UE.to(self._items_IE.dtype), rows)

    def _inputs(
        self, users: Sequence[Record] | pa.Table, events: Sequence[Sequence[Event]]
    ) -> dict[str, Tensor]:
        inputs = {**self._extractor(users=users), **self._history.of_events(events)}
        return {name: tensor.to(self._model.device) for name, tensor in inputs.items()}

    def _recommendations(self, scores_UK: Tensor, ids_UK: Tensor) -> list[list[Recommendation]]:
        ids, k = ids_UK.flatten().cpu().numpy(), ids_UK.shape[1]
        keys = text_table(self.catalogue.keys).take(ids)
        titles = text_table(self.catalogue.titles).take(ids)
        found = list(map(Recommendation, keys, scores_UK.flatten().tolist(), titles))
        counts = (scores_UK != -torch.inf).sum(1).tolist()
        return [found[row * k : row * k + count] for row, count in enumerate(counts)]

    def _known_users(self) -> KnownUsers:
        if self.users is None:
            columns = ", ".join(column["name"] for column in self._extractor.user_columns)
            raise ValueError(
                "this checkpoint knows no users by key (its folder local/ never leaves the machine "
                f"that trained it); give record={{...}} with any of: {columns}"
            )
        return self.users


def _finite(users_UE: Tensor) -> Tensor:
    if not users_UE.isfinite().all():
        row = int((~users_UE.isfinite().all(1)).nonzero()[0])
        raise ValueError(
            f"the embedding of user record {row} is not finite; its columns hold values too large "
            "for the model, or the weights are damaged"
        )
    return users_UE


def _check_k(k: int, most: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
        raise ValueError(
            f"k must be a whole number from 1 to {most}, what the catalogue can give; got {k!r}"
        )


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        recommender: the trained model with its catalogue.
        recipe: which rebuilds the run.
    """

    recommender: Recommender
    recipe: "Recipe"

    @property
    def evaluation(self) -> Report:
        """How good the model was on the test part, beside the baselines."""
        return self.recommender.evaluation


def train(recipe: "Recipe | Mapping[str, Any] | str | Path") -> Run:
    """Train, compare, save and push as a recipe says.

    Args:
        recipe: a recipe, its plain values, its YAML file, or the name of a shipped one.

    Raises:
        FileNotFoundError: there is no such recipe, or a table is missing.
        ValueError: a recipe or tables that cannot be trained.
    """
    from ftmamba.run import load_recipe, run_recipe

    finished = run_recipe(load_recipe(recipe))
    return Run(Recommender(finished.checkpoint), finished.recipe)
