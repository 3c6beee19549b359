"""From raw records to the model's tensors, the same for one record and for a whole table.

Shapes: B records, U users, R events, T events of the longest history, F event features, I items, E
embedding.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import FEATURE_EXTRACTOR_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from .catalogue import top_k
from .configuration_ftmamba import (
    EVENT_KEYS,
    HISTORY,
    LARGEST_CONTEXT,
    TOWERS,
    Column,
    check_columns,
    column_from_dict,
    columns_of_tensor,
    history_of,
    near,
)  # fmt: skip
from .encoders import (
    ENCODERS,
    ColumnEncoder,
    WrongValueError,
    is_arrow,
    is_missing,
    number_of,
    refuse_periods,
    seconds_of,
    text_of,
)  # fmt: skip
from .user_state import log_gaps

try:
    import pyarrow as pa
except ImportError:  # a checkpoint's user may not have it
    pa = None

VOCABULARY_NAME = "vocabularies.safetensors"
FORMAT_VERSION = 1
WHOLE_RECORD = "user record"
# The tensors of a tower, named `user_numeric` and so on.
DTYPES = {"numeric": np.float32, "category_ids": np.int64, "set_ids": np.int64, "dense": np.float32}
_HUB_KEYS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
)  # fmt: skip
_ARGUMENTS = {"user_columns": list, "item_columns": list, "user_key": str, "item_key": str}
_JSON_TYPES = {**_ARGUMENTS, "format_version": int, "fingerprint": str}
_AGAIN = "download or save the checkpoint again"


class FTMambaFeatureExtractor(FeatureExtractionMixin):
    """Encode users and items for `FTMambaTwoTowerModel`, as fitted on training rows.

    Missing values (None, NaN, an absent column) and unseen categories have encodings of their own;
    a value of the wrong type is an error.

    Args:
        user_columns: dictionaries of `Column`, in the order of the tokens; `item_columns` alike.
        user_key: name of the column that identifies a user; `item_key` an item.
        arrays: what was fitted; `catalogue_path` is for a pipeline.
    """

    # `save_pretrained` copies this folder's code beside the files for `AutoFeatureExtractor`.
    _auto_class = "AutoFeatureExtractor"

    def __init__(
        self,
        user_columns: Iterable[Mapping[str, Any]] = (),
        item_columns: Iterable[Mapping[str, Any]] = (),
        user_key: str = "",
        item_key: str = "",
        arrays: Mapping[str, NDArray[Any]] | None = None,
        catalogue_path: str | None = None,
    ) -> None:
        self.catalogue_path, self.user_key, self.item_key = catalogue_path, user_key, item_key
        self._columns: dict[str, tuple[Column, ...]] = {}
        self._encoders: dict[str, dict[str, ColumnEncoder]] = {}
        super().__init__()
        parts: dict[str, dict[str, NDArray[Any]]] = {}
        for key, array in (arrays or {}).items():
            owner, _, part = key.rpartition("/")
            parts.setdefault(owner, {})[part] = array
        for tower, given in zip(TOWERS, (user_columns, item_columns), strict=True):
            columns = self._columns[tower] = tuple(map(column_from_dict, given))
            check_columns(columns, tower)
            if arrays is not None:
                self._encoders[tower] = {
                    column.name: ENCODERS[column.kind](
                        column, name_of(column, tower), parts.get(f"{tower}/{column.name}", {})
                    )
                    for column in columns
                    if column.kind != HISTORY
                }

    def __repr__(self) -> str:
        towers = []
        for tower, columns in self._columns.items():
            counts = Counter(column.kind for column in columns).items()
            kinds = ", ".join(f"{count} {kind}" for kind, count in counts) or "no columns"
            towers.append(f"{tower}: {kinds}")
        size = sum(c.vocabulary_size for columns in self._columns.values() for c in columns)
        state = f"{size:,} categories" if self._encoders else "not fitted"
        return f"{type(self).__name__}({'; '.join(towers)}; {state})"

    @property
    def user_columns(self) -> list[dict[str, Any]]:
        """The user columns with their fitted fields, as in `FTMambaConfig`."""
        return [column.to_dict() for column in self._columns["user"]]

    @property
    def item_columns(self) -> list[dict[str, Any]]:
        """The item columns, likewise."""
        return [column.to_dict() for column in self._columns["item"]]

    @property
    def model_input_names(self) -> list[str]:
        """The tensors that both towers need."""
        return [f"{tower}_{tensor}" for tower in TOWERS for tensor, _ in self._tensors(tower)]

    def columns(self, tower: str) -> tuple[Column, ...]:
        """Return the columns of the `user` or `item` tower, fitted fields included."""
        if tower not in TOWERS:
            raise ValueError(f"tower must be one of {', '.join(TOWERS)}, got {tower!r}")
        return self._columns[tower]

    def __call__(
        self, users: Any = None, items: Any = None, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Encode users, items or both, as the tensors `user_numeric` to `item_dense`; see `DTYPES`.

        Either is one record (a dict), a list of records, a dict of column name to array, or a
        table of Arrow, pandas, polars or datasets. A misspelt column is refused.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}")
        arrays: dict[str, Any] = {}
        for tower, source in zip(TOWERS, (users, items), strict=True):
            if source is None:
                continue
            is_one = isinstance(source, Mapping) and _is_record(source, self._columns[tower])
            given = [source] if is_one else source
            values, n_rows, _ = raw_columns(given, self._columns[tower], tower)
            if n_rows < 0:
                lengths = ", ".join(f"{name!r} has {len(own)}" for name, own in values.items())
                raise ValueError(f"the {tower} columns must have one length, got: {lengths}")
            for tensor, columns in self._tensors(tower):
                array = np.empty((n_rows, sum(c.width for c in columns)), DTYPES[tensor])
                end = 0
                for column in columns:
                    start, end = end, end + column.width
                    own = values.get(column.name, [None] * n_rows)
                    array[:, start:end] = self.encoder(tower, column.name).encode(own)
                arrays[f"{tower}_{tensor}"] = array
        if return_tensors == "pt":
            arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return BatchFeature(arrays)

    def encoder(self, tower: str, name: str) -> Any:
        """Return the fitted encoder of a column."""
        self.columns(tower)
        if not self._encoders:
            raise ValueError("the feature extractor is not fitted; load one with from_pretrained")
        known = self._encoders[tower]
        if name not in known:
            hint = f"{near(name, known)}; they have: {', '.join(known)}"
            raise ValueError(f"the {tower}s have no column {name!r}{hint}")
        return known[name]

    def known_values(self, tower: str, name: str) -> list[str]:
        """Return the texts that a `categorical` or `categories` column knows, by frequency."""
        return list(self.encoder(tower, name).texts)

    def to_dict(self) -> dict[str, Any]:
        """Return what `preprocessor_config.json` holds."""
        reference = "processing_ftmamba.FTMambaFeatureExtractor"
        columns = {"user_columns": self.user_columns, "item_columns": self.item_columns}
        fingerprint = fingerprint_of(self._arrays(), [*columns.values()]) if self._encoders else ""
        return {
            "feature_extractor_type": type(self).__name__,
            "auto_map": {"AutoFeatureExtractor": reference, "AutoProcessor": reference},
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "user_key": self.user_key,
            "item_key": self.item_key,
            **columns,
        }

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the JSON file and `vocabularies.safetensors`, each whole or not at all.

        The fingerprint shows if a crash fell between the two.
        """
        path = Path(json_file_path)
        vocabularies = save(self._arrays(), {"format": "np"})
        values = json.dumps(self.to_dict(), indent=2).encode() + b"\n"
        for name, content in ((VOCABULARY_NAME, vocabularies), (path.name, values)):
            temporary = path.with_name(f".{name}.new")
            try:
                temporary.write_bytes(content)
                temporary.replace(path.with_name(name))
            finally:
                temporary.unlink(missing_ok=True)

    @classmethod
    def get_feature_extractor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read both files of a folder or a Hub id; keys of other programs are left out."""
        hub = {key: kwargs.pop(key) for key in _HUB_KEYS if key in kwargs}
        for_pipeline = kwargs.pop("_from_pipeline", None) is not None
        kwargs.pop("_from_auto", None)
        given = Path(pretrained_model_name_or_path)
        source = str(given.parent if given.is_file() else pretrained_model_name_or_path)
        name = given.name if given.is_file() else FEATURE_EXTRACTOR_NAME
        path = _find(source, name, hub)
        # The other files of the same commit, also if the branch moves on meanwhile.
        hub |= {"revision": extract_commit_hash(str(path), None) or hub.get("revision")}
        vocabularies = _find(source, VOCABULARY_NAME, hub)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            for key, kind in _JSON_TYPES.items():
                if not isinstance(values, dict) or not isinstance(values.get(key), kind):
                    raise ValueError(f"{key} must be a {kind.__name__}")
            if values["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format_version must be {FORMAT_VERSION}")
            arrays = load_file(vocabularies)
            columns = [values["user_columns"], values["item_columns"]]
            if fingerprint_of(arrays, columns) != values["fingerprint"]:
                raise ValueError("they are of two saves, or one was changed")
            own = {**{key: values[key] for key in _ARGUMENTS}, "arrays": arrays}
            cls(**own)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            files = f"{str(path)!r} or the {VOCABULARY_NAME} beside it"
            raise ValueError(f"{files} is damaged ({error!s:.200}); {_AGAIN}") from None
        if for_pipeline:  # which does not know revision and token
            options = {"_raise_exceptions_for_missing_entries": False, **hub}
            own["catalogue_path"] = cached_file(source, "catalogue.safetensors", **options)
        return own, kwargs

    def _tensors(self, tower: str) -> list[tuple[str, list[Column]]]:
        """Return the tensors that a tower has, and the columns of each."""
        found = [(name, columns_of_tensor(self.columns(tower), name)) for name in DTYPES]
        return [(name, columns) for name, columns in found if columns]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            f"{tower}/{column.name}/{part}": np.ascontiguousarray(array)
            for tower in TOWERS
            for column in self._columns[tower]
            if column.kind != HISTORY
            for part, array in self.encoder(tower, column.name).arrays.items()
        }


def name_of(column: Column, tower: str) -> str:
    """Name a column for an error."""
    return f"{tower} column {column.name!r}"


def fingerprint_of(arrays: Mapping[str, NDArray[Any]], columns: list[Any]) -> str:
    """Return a short digest of all that was fitted: what arrays and columns hold."""
    digest = blake2b(json.dumps(columns, sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode("utf-8", "surrogatepass"))
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _find(source: str, name: str, hub: dict[str, Any]) -> Path:
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
    if path is None:
        raise FileNotFoundError(f"{source!r} has no {name}; {_AGAIN}, or give another folder or id")
    return Path(path)


def raw_columns(
    source: Any, columns: Sequence[Column], tower: str
) -> tuple[dict[str, Any], int, list[str]]:
    """Return the known columns that are given, the rows of all (-1 if they differ), all names."""
    names = [column.name for column in columns if column.kind != HISTORY]
    if hasattr(source, "to_records"):  # pandas, of which Arrow refuses columns of several types
        source = {str(name): source[name].to_numpy() for name in source.columns}
    if isinstance(source, list | tuple):
        rows: dict[Any, int] = {}
        for row, record in enumerate(source):
            rows.setdefault(tuple(record) if isinstance(record, Mapping) else None, row)
        for keys, row in rows.items():
            rule = "must be a dict of column name to value"
            if rule := unknown_columns(keys, columns) if keys is not None else rule:
                raise WrongValueError(f"{tower} record", row, source[row], rule=rule)
        given, n_rows = set().union(*source), len(source)
        values = {name: [one.get(name) for one in source] for name in names if name in given}
    elif isinstance(source, Mapping):
        given, values = set(source), {name: source[name] for name in names if name in source}
        for name, own in values.items():
            if not _is_column(own):
                raise ValueError(f"{tower} column {name!r} must be a list, got {own!r:.80}")
        lengths = set(map(len, values.values()))
        n_rows = lengths.pop() if len(lengths) == 1 else -1
    else:
        if hasattr(source, "with_format") and hasattr(source, "select_columns"):
            known = [name for name in names if name in source.column_names]
            source = (source.select_columns(known) if known else source).with_format("arrow")[:]
        is_table = hasattr(source, "__arrow_c_stream__") and not hasattr(source, "dtype")
        if pa is None or is_arrow(source) or not is_table:
            rule = "must be a record (dict), a list of records, a dict of columns, or a table"
            raise ValueError(f"{tower}s {rule} (pyarrow, datasets); got {type(source).__name__}")
        table = pa.table(source)
        given, n_rows = set(table.column_names), table.num_rows
        values = {name: table.column(name) for name in names if name in given}
        refuse_periods(table.select(list(values)).schema)
    if not isinstance(source, list | tuple) and (rule := unknown_columns(given, columns)):
        raise ValueError(f"{tower} records: {rule}")
    return values, n_rows, sorted(map(str, given))


def unknown_columns(given: Iterable[str], columns: Sequence[Column]) -> str:
    """Say that no column is known, or that one is near the name of an absent one; else nothing."""
    names = {column.name for column in columns}
    unknown = sorted(str(name) for name in given if name not in names)
    absent = names.difference(given)
    is_lost = len(absent) == len(names) and any(column.kind != HISTORY for column in columns)
    absent -= {column.name for column in columns if column.popularity_days}
    guesses = {name: near(name, absent, 0.6 if is_lost else 0.8) for name in unknown}
    wrong = [name for name in unknown if is_lost or guesses[name]][:10]
    guess = next((f"{one} Else give it as None" for one in guesses.values() if one), "")
    rule = "no known columns" if is_lost else "an unknown column"
    rule += f", got: {', '.join(wrong)}{guess}; known are: {', '.join(sorted(names))}"
    return rule if wrong else ""


def _is_column(value: object) -> bool:
    is_array = isinstance(value, np.ndarray) and value.ndim > 0
    return is_array or isinstance(value, list | tuple) or is_arrow(value)


def _is_record(source: Mapping[str, Any], columns: Sequence[Column]) -> bool:
    """Tell whether a dict is one record: a column that holds no lists has a single value.

    A dict of nothing but sets or vectors is a record unless these are nested.
    """
    given = [(c.kind, source[c.name]) for c in columns if c.kind != HISTORY and c.name in source]
    single = [own for kind, own in given if kind not in ("categories", "vector")]
    return not given or not all(
        _is_column(own)
        and (single or is_arrow(own) or any(isinstance(x, set) or _is_column(x) for x in own))
        for own in single or [own for _, own in given]
    )


class Event(NamedTuple):
    """One event of a user: of a file, a record, a known user or a stream.

    An item is a key, columns of one that is in no catalogue, or a row of the catalogue. A time is
    in UTC seconds; what is unknown is NaN, or absent in the context, numbers by column name.
    """

    item: Any
    time: float = math.nan
    weight: float = math.nan
    context: Mapping[str, float] = {}


@dataclass(frozen=True, eq=False)
class PaddedEvents:
    """Some events of each of B users, oldest first, padded on the right."""

    is_event: NDArray[np.bool_]  # (B, T)
    index: NDArray[np.int64]  # (B, T), in the `EventTable`, 0 where padded
    features: NDArray[np.float32]  # (B, T, F), NaN where missing

    def of(self, values_R: NDArray[Any]) -> NDArray[Any]:
        """Return one value of each event (B, T), 0 where padded."""
        padded_BT = np.zeros(self.index.shape, values_R.dtype)
        padded_BT[self.is_event] = values_R[self.index[self.is_event]]
        return padded_BT


@dataclass(frozen=True, eq=False)
class EventTable:
    """Events (R,) of U users end to end, each user's oldest first; unknown are NaN, or all None."""

    starts: NDArray[np.int64]  # (U + 1,)
    times: NDArray[Any] | None = None  # UTC seconds
    weights: NDArray[Any] | None = None
    context: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @cached_property
    def gaps(self) -> NDArray[np.float32] | None:
        """The gap ahead of each event (R,), 0 for a user's first; None without times."""
        if self.times is None:
            return None
        times_R = np.asarray(self.times, dtype=np.float64)
        before_R = np.concatenate([times_R[:1], times_R[:-1]])
        firsts = self.starts[:-1][np.diff(self.starts) > 0]
        before_R[firsts] = times_R[firsts]
        gaps_R = log_gaps(torch.from_numpy(times_R), torch.from_numpy(before_R))
        return gaps_R.to(torch.float32).numpy()

    def padded(
        self, starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64], names: Sequence[str] = ()
    ) -> PaddedEvents:
        """Return stretches by first event and length, with `gap`, `weight` or context columns."""
        known = {"gap": self.gaps, "weight": self.weights, **self.context}
        steps_T = np.arange(lengths_B.max(initial=0))
        is_event_BT = steps_T < lengths_B[:, None]
        index_BT = np.where(is_event_BT, starts_B[:, None] + steps_T, 0)
        features_BTF = np.full((*index_BT.shape, len(names)), np.nan, np.float32)
        padded = PaddedEvents(is_event_BT, index_BT, features_BTF)
        for slot, name in enumerate(names):
            if name not in known:
                rule = f"event_features must be among {', '.join(known)}, what the events have"
                raise ValueError(f"{rule}, got {name!r}{near(name, known)}")
            values_R = known[name]
            if values_R is not None:
                features_BTF[:, :, slot] = padded.of(values_R)
        return padded


class HistoryReader:
    """Reads the history of raw records, if the model has one.

    A record's history is a list of events, oldest first, each the key of an item or a dict:

        "50"
        {"item": "50", "time": "2024-03-01", "weight": 4}
        {"item": "50", "price": 3.5}                      a column that the history's column names
        {"item": {"title": "Dune", "genres": ["sci-fi"]}}     an item that is in no catalogue

    Where each of a record's events has a time, they are sorted by time, ties as they are listed.
    All parts are of one checkpoint; `items` are the catalogue's embeddings (I, E) on the model's
    device.
    """

    def __init__(self, model: Any, extractor: Any, catalogue: Any, items: Tensor) -> None:
        self._columns = extractor.columns("user")
        self.column = history_of(self._columns)
        self._model, self._extractor = model, extractor
        self._catalogue, self._items_IE = catalogue, items
        self.n_read = 0  # newest events of which `scores` reads the items
        if self.column is not None:
            n_seen = 0 if model.repeat_bias is None else self.column.max_length
            self.n_read = max(n_seen, catalogue.blend.max_history if catalogue.blend else 0)

    def events(self, records: Sequence[Mapping[str, Any]]) -> list[list[Event]]:
        """Return the events of raw records, in order; WrongValueError where they are none."""
        if self.column is None:
            return [[] for _ in records]
        histories, name = [], name_of(self.column, "user")
        for row, record in enumerate(records):
            if record and len(self._columns) == 1 and self.column.name not in record:
                rule = f"must have the column {self.column.name!r}"
                raise WrongValueError(WHOLE_RECORD, row, record, rule=rule)
            given: Any = record.get(self.column.name)
            given = () if is_missing(given) else given
            if isinstance(given, str | bytes) or not isinstance(given, Sequence | np.ndarray):
                rule = "must be a list of events, oldest first"
                raise WrongValueError(name, row, given, rule=rule)
            items = self._extractor.columns("item")
            events = [_event(one, self.column.context, items, name, row) for one in given]
            if not any(math.isnan(event.time) for event in events):
                events.sort(key=lambda event: event.time)
            histories.append(events)
        return histories

    def rows(self, histories: Sequence[Sequence[Event]]) -> list[NDArray[np.int64]]:
        """Return the catalogue's row of each item, -1 for one of no catalogue."""
        rows = self._rows([event.item for history in histories for event in history])
        return np.split(rows, np.cumsum([len(history) for history in histories])[:-1])

    def scores(self, users_UE: Tensor, rows: Sequence[NDArray[np.int64]]) -> Tensor:
        """Return the scores (U, I) of users by their embeddings and the `rows` of their items."""
        seen = None
        if self.column is not None and self._model.repeat_bias is not None:
            newest = [own[-self.column.max_length :] for own in rows]
            users = np.repeat(np.arange(len(newest)), [len(own) for own in newest])
            pairs_2P = np.stack([users, np.concatenate(newest)])
            seen = tuple(torch.from_numpy(pairs_2P[:, pairs_2P[1] >= 0]).to(users_UE.device))
        scores_UI: Tensor = self._model.scores(users_UE, self._items_IE, seen)
        if self._catalogue.blend is not None:
            scores_UI += torch.from_numpy(self._catalogue.blend.added(rows)).to(scores_UI)
        sums_U = scores_UI.sum(1, dtype=torch.float32)  # finite only if each is
        if not bool((is_finite_U := sums_U.isfinite()).all()):
            rule = "its scores are not finite: values too large, or damaged weights"
            row = int(is_finite_U.int().argmin())
            raise WrongValueError(WHOLE_RECORD, row, float(sums_U[row]), rule=rule)
        return scores_UI

    def best(
        self, scores_UI: Tensor, k: int, seen: Any, *, exclude: Any, exclude_seen: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Return scores and rows (U, K) of the best items, minus infinity for what is left out.

        `exclude_seen` None leaves the `seen` rows of users out where the catalogue says so.
        """
        if self._catalogue.exclude_seen if exclude_seen is None else exclude_seen:
            users = np.repeat(np.arange(len(seen)), [len(own) for own in seen])
            items = np.concatenate([*seen, np.zeros(0, np.int64)])
            scores_UI[users[items >= 0], items[items >= 0]] = -torch.inf
        scores_UI[:, exclude] = -torch.inf
        return top_k(scores_UI, k)

    def of_events(
        self, histories: Sequence[Sequence[Event]], max_length: int | None = None
    ) -> dict[str, Tensor]:
        """Return `user_history` and what belongs to it; nothing where the model has no history.

        Of each user the newest `max_length` events are read, by default the column's; 0 is all.
        """
        if self.column is None:
            return {}
        events = [event for history in histories for event in history]
        context = {
            name: np.array([event.context.get(name, math.nan) for event in events], np.float64)
            for name in self.column.context
        }
        starts = np.cumsum([0, *map(len, histories)])
        times, weights = (np.array([e[i] for e in events], np.float64) for i in (1, 2))
        times = np.floor(times)  # as in training
        lengths_B = np.diff(starts)
        most = self.column.max_length if max_length is None else max_length
        lengths_B = np.minimum(lengths_B, most) if most else lengths_B
        table = EventTable(starts, times, weights, context)
        names = self.column.event_features
        padded = table.padded(starts[1:] - lengths_B, lengths_B, names)
        history_BTE = self._items_IE.new_zeros(*padded.index.shape, self._items_IE.shape[1])
        newest = [events[index].item for index in padded.index[padded.is_event]]
        device = history_BTE.device
        history_BTE[torch.from_numpy(padded.is_event).to(device)] = self._embed(newest)
        tensors = {"user_history": history_BTE, "user_history_lengths": lengths_B}
        if names:
            tensors["user_event_features"] = padded.features
        return {name: torch.as_tensor(values, device=device) for name, values in tensors.items()}

    def _rows(self, items: Sequence[Any]) -> NDArray[np.int64]:
        """Return the catalogue's row of each item, -1 for one that is not in it."""
        keys = [one for one in items if isinstance(one, str)]
        found = iter(self._catalogue.rows(keys) if keys else ())
        rows = [next(found) if isinstance(one, str) else one for one in items]
        return np.array([row if isinstance(row, int) else -1 for row in rows], np.int64)

    def _embed(self, items: Sequence[Any]) -> Tensor:
        """Return the embeddings (R, E) of rows and keys of the catalogue, other keys, columns."""
        rows = self._rows(items)
        embeds_RE = self._items_IE[rows.clip(0).tolist()]
        unknown = np.flatnonzero(rows < 0).tolist()
        if unknown:
            names = [column.name for column in self._extractor.columns("item")]
            own = [items[index] for index in unknown]
            key = self._extractor.item_key
            own = [item if isinstance(item, Mapping) else {key: item} for item in own]
            records = [{name: item.get(name) for name in names} for item in own]
            encoded = self._extractor(items=records)
            inputs = {name: tensor.to(embeds_RE.device) for name, tensor in encoded.items()}
            embeds_RE[unknown] = self._model.get_item_embeddings(**inputs).to(embeds_RE.dtype)
        return embeds_RE


def _event(
    given: Any, context: Sequence[str], items: Sequence[Column], name: str, row: int
) -> Event:
    values = given if isinstance(given, Mapping) else {"item": given}
    known = (*EVENT_KEYS, *context)
    for key in values:
        if key not in known:
            rule = f"an event has no {key!r:.40}{near(key, known)}; it may have {', '.join(known)}"
            raise WrongValueError(name, row, given, rule=rule)
    item = values.get("item")
    if isinstance(item, Mapping) and (rule := unknown_columns(item, items)):
        raise WrongValueError(name, row, given, rule=f"an item has {rule}")
    rule = "an event must be an item's key, or a dict with 'item' and perhaps 'time' and 'weight'"
    try:
        item = item if isinstance(item, Mapping) else text_of(item)
        if item is None:
            raise ValueError("no item")
        rule = "an event's time must be UTC seconds (not milliseconds) or ISO, its weight a number"
        time, weight = seconds_of(values.get("time")), number_of(values.get("weight"))
        rule = f"an event's {' and '.join(context)} must be finite numbers, or None if not known"
        numbers = {column: number_of(values.get(column)) for column in context}
        if any(abs(number) > LARGEST_CONTEXT for number in numbers.values()):
            raise ValueError("too large")
    except (TypeError, ValueError, ArithmeticError):
        raise WrongValueError(name, row, given, rule=rule) from None
    return Event(item, time, weight, numbers)
