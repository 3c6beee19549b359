"""The catalogue of a checkpoint: every item's key, title and embedding, and the best items of it.

Shapes: U users, I items, E embedding, S slots of an encoded record, K ranks.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from .configuration_ftmamba import near
from .encoders import TEXT_RULE, TextTable, text_of, text_table

CATALOGUE_NAME = "catalogue.safetensors"
CATALOGUE_VERSION = 1
LONGEST_KEY = 4096  # bytes
GROUP_SIZE = 32
CAST_TYPES = (torch.bfloat16, torch.float16, torch.float64)
_TEXTS = ("key_bytes", "key_offsets", "title_bytes", "title_offsets")
_FACTS = ("as_of", "fingerprint", "cast_fingerprints", "exclude_seen")
_RECORDS, _BLEND = "records/", "blend/"
_MOST_TO_SUGGEST_FROM = 50_000


def history_weights(
    age_R: NDArray[np.int64], n_R: NDArray[np.int64], ratio: float, n_recent: int, share: float
) -> NDArray[np.float64]:
    """Return the weight of each event of a history by its age, 0 the newest, and the length.

    The `n_recent` newest events share `share`, each `ratio` times the next newer one; all older
    ones share the rest equally. With `n_recent` 0, as for a set, each weighs 1 / sqrt(length).
    """
    powers = np.float64(ratio) ** np.arange(max(n_recent, 1))
    sum_R = np.cumsum(powers)[np.clip(n_R, 1, len(powers)) - 1]
    recent_R = share * powers[np.minimum(age_R, len(powers) - 1)] / sum_R
    others_R = (1 - share) / np.maximum(n_R - n_recent, 1) ** (1.0 if n_recent else 0.5)
    return np.where(age_R < n_recent, recent_R, others_R)


@dataclass(frozen=True)
class Blend:
    """What counted interactions add to the towers' scores.

    To the score of item j it is weight * sum_a h_a E[item of age a, j] + popularity_weight *
    log_popularity_j, with the weights h of `history_weights`; for a user without a history it is
    cold_weight * log_popularity_j. E is sparse: item i has the evidence
    `evidence[starts[i] : starts[i + 1]]` for the items `neighbours` of the same indices.
    """

    starts: NDArray[np.int64]  # (I + 1,)
    neighbours: NDArray[np.int32]
    evidence: NDArray[np.float32]
    log_popularity: NDArray[np.float32]  # (I,), as of the catalogue's time
    weight: float = 0.0
    popularity_weight: float = 0.0
    cold_weight: float = 0.0
    max_history: int = 200  # newest events that count
    ratio: float = 1.0
    n_recent: int = 0
    recent_share: float = 0.0

    def __post_init__(self) -> None:
        n_items, n, starts = len(self.log_popularity), len(self.neighbours), self.starts
        arrays = [getattr(self, name) for name in _BLEND_ARRAYS]
        found = [(array.dtype.str, array.shape) for array in arrays]
        fits = found == [("<i8", (n_items + 1,)), ("<i4", (n,)), ("<f4", (n,)), ("<f4", (n_items,))]
        fits = fits and starts[0] == 0 and starts[-1] == n and not (np.diff(starts) < 0).any()
        if not fits or not ((self.neighbours >= 0) & (self.neighbours < n_items)).all():
            raise ValueError(f"the neighbours of a blend do not fit its {n_items} items")
        numbers = [float(getattr(self, name)) for name in _BLEND_NUMBERS]
        is_finite = all(np.isfinite(x).all() for x in (*arrays, numbers))
        if not is_finite or self.max_history < 1 or self.n_recent < 0:
            raise ValueError("a blend's numbers must be finite, its max_history 1 or more")

    def added(self, histories: Sequence[Sequence[int] | NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return what is added to the scores (U, I) of users, given their items, oldest first.

        An item of no catalogue is -1. The cost of a user grows with the history alone.
        """
        n_items = len(self.log_popularity)
        newest = [np.asarray(one, np.int64)[: -self.max_history - 1 : -1] for one in histories]
        n_U = np.array([len(one) for one in newest], np.int64)
        user_R, item_R = np.repeat(np.arange(len(newest)), n_U), np.concatenate(newest)
        age_R = np.arange(len(user_R)) - np.repeat(np.cumsum(n_U) - n_U, n_U)
        shape = n_U[user_R], self.ratio, self.n_recent, self.recent_share
        weight_R = self.weight * history_weights(age_R, *shape)
        known = np.flatnonzero(item_R >= 0)
        user_R, item_R, weight_R = user_R[known], item_R[known], weight_R[known]
        count_R = self.starts[item_R + 1] - self.starts[item_R]
        first_R = self.starts[item_R] - (np.cumsum(count_R) - count_R)
        index = np.arange(count_R.sum()) + np.repeat(first_R, count_R)
        flat = np.repeat(user_R * n_items, count_R) + self.neighbours[index]
        values = np.repeat(weight_R, count_R) * self.evidence[index]
        added_UI = np.bincount(flat, values, len(newest) * n_items).reshape(-1, n_items)
        prior_U1 = np.where(n_U > 0, self.popularity_weight, self.cold_weight)[:, None]
        return (added_UI + prior_U1 * self.log_popularity.astype(np.float64)).astype(np.float32)


_BLEND_ARRAYS = ("starts", "neighbours", "evidence", "log_popularity")
_BLEND_NUMBERS = tuple(one.name for one in fields(Blend) if one.name not in _BLEND_ARRAYS)


@dataclass(frozen=True)
class Catalogue:
    """Every item that can be recommended; row i is the item with the dense id i."""

    keys: Sequence[str]  # in the raw table, unique
    titles: Sequence[str]  # what to show a person; empty texts where the table has no title
    embeddings: NDArray[np.float32]  # (I, E), of the item tower
    as_of: int | None = None  # UTC seconds at which the items' popularity was counted
    fingerprint: str = ""  # of the weights that made the embeddings (`weights_fingerprint`)
    cast_fingerprints: Sequence[str] = ()  # of the same weights as `CAST_TYPES`
    # The encoded items (I, S) by the extractor's names, if they are kept for explanations.
    records: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    blend: Blend | None = None  # what is added to the towers' scores
    exclude_seen: bool = True  # leave out seen items unless asked, as the evaluation did

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", text_table(self.keys))
        object.__setattr__(self, "titles", text_table(self.titles))
        n_items, found = len(self.keys), self.embeddings
        if found.ndim != 2 or found.dtype != np.float32:
            got = f"{found.dtype} {found.shape}"
            raise ValueError(f"a catalogue's embeddings must be float32 (items, width), got {got}")
        lengths = {"titles": len(self.titles), "embeddings": len(found)}
        lengths |= {name: len(record_IS) for name, record_IS in self.records.items()}
        lengths |= {"blend": len(self.blend.log_popularity)} if self.blend else {}
        if n_items == 0 or set(lengths.values()) != {n_items}:
            raise ValueError(f"a catalogue of {n_items} items must have one each of: {lengths}")
        if (longest := max(map(len, self._row_of))) > LONGEST_KEY:
            raise ValueError(f"a key has {longest} bytes, at most {LONGEST_KEY} are read")
        if len(self._row_of) < n_items:
            twice = next(key for row, key in enumerate(self.keys) if self.rows([key]) != [row])
            raise ValueError(f"the item key {twice!r} occurs twice in a catalogue")

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _row_of(self) -> dict[bytes, int]:
        table = text_table(self.keys)
        packed, ends = table.packed.tobytes(), table.offsets.tolist()
        return {packed[start:end]: row for row, (start, end) in enumerate(pairwise(ends))}

    def rows(self, item_keys: Iterable[Any]) -> list[int | None]:
        """Return the row of each key, whatever its type (`text_of`), None where there is none."""
        try:
            texts = [(text_of(key) or "").encode("utf-8", "surrogatepass") for key in item_keys]
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"an item's key {TEXT_RULE}, {error}") from None
        return [self._row_of.get(text) for text in texts]

    def excluded(self, exclude: Any) -> list[int]:
        """Return the rows of the items to leave out, by their keys; keys of no item are ignored."""
        if not isinstance(exclude, Iterable) or isinstance(exclude, str | bytes | Mapping):
            rule = "exclude must be a list of item keys, as in ['50', '181']"
            raise ValueError(f"{rule}; got {exclude!r:.80}")
        return [row for row in self.rows(exclude) if row is not None]

    def is_of(self, model: nn.Module) -> bool:
        """Return whether the model's weights made it, in whatever type they are loaded."""
        return weights_fingerprint(model) in (self.fingerprint, *self.cast_fingerprints)

    def row(self, item_key: str) -> int:
        """Return the row of an item; an unknown key raises a ValueError with the nearest one."""
        row = self.rows([item_key])[0]
        if row is None:
            guess = near(item_key, self.keys) if len(self) <= _MOST_TO_SUGGEST_FROM else ""
            raise ValueError(f"no item {item_key!r} among the {len(self)} of the catalogue{guess}")
        return row

    def save(self, path: Path) -> None:
        """Write the catalogue to one safetensors file."""
        tables = text_table(self.keys), text_table(self.titles)
        texts = [array for table in tables for array in (table.packed, table.offsets)]
        arrays = {**dict(zip(_TEXTS, texts, strict=True)), "embeddings": self.embeddings}
        arrays |= {f"{_RECORDS}{name}": values for name, values in self.records.items()}
        facts = {name: getattr(self, name) for name in _FACTS}
        facts |= {"format_version": CATALOGUE_VERSION, "n_items": len(self)}
        if self.blend is not None:
            arrays |= {f"{_BLEND}{name}": getattr(self.blend, name) for name in _BLEND_ARRAYS}
            facts["blend"] = {name: getattr(self.blend, name) for name in _BLEND_NUMBERS}
        metadata = {"catalogue": json.dumps(facts)}  # several entries would have no fixed order
        temporary = path.with_name(f".{path.name}.new")
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, metadata)
        temporary.replace(path)


def load_catalogue(path: Path) -> Catalogue:
    """Read a catalogue, whose arrays stay in the file until they are used."""
    if not path.exists():
        raise FileNotFoundError(f"no catalogue {str(path)!r}; training saves one in a checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        facts = json.loads(metadata["catalogue"])
        version = metadata.get("format_version", facts.get("format_version"))
        if str(version) != str(CATALOGUE_VERSION):
            raise ValueError(f"format {version!s:.20}, this code reads {CATALOGUE_VERSION}")
        packed = [arrays.pop(name) for name in _TEXTS]
        keys, titles = TextTable(*packed[:2]), TextTable(*packed[2:])
        own = (arrays.pop("embeddings"), facts["as_of"], facts["fingerprint"])
        cast = tuple(map(str, facts.get("cast_fingerprints", ())))
        blend = None
        if numbers := facts.get("blend"):
            counted = [arrays.pop(f"{_BLEND}{name}") for name in _BLEND_ARRAYS]
            blend = Blend(*counted, **numbers)
        records = {name.removeprefix(_RECORDS): array for name, array in arrays.items()}
        return Catalogue(keys, titles, *own, cast, records, blend, facts.get("exclude_seen", True))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{str(path)!r} is truncated or no catalogue ({error!s:.300})"
        raise ValueError(f"{problem}; download or save the checkpoint again") from None


def weights_fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Hash the names, types, shapes and values of a model's weights, cast to `dtype` if given."""
    digest = hashlib.sha256()
    for name, stored in sorted(model.state_dict().items()):
        tensor = stored.to(dtype) if dtype and stored.is_floating_point() else stored
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()


def top_k(scores_UI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` highest scores of each row and their items (U, K), best first.

    Among equal scores the lower item id comes first, also among those level with the last one;
    `torch.topk` alone promises neither.
    """
    n_items = scores_UI.shape[1]
    if not 1 <= k <= n_items:
        raise ValueError(f"k must be between 1 and the {n_items} items of the catalogue, got {k}")
    # One more than asked for: a tie with the last one shows without a pass over all scores.
    n, n_groups = min(k + 1, n_items), n_items // GROUP_SIZE
    if n_groups < 2 * n:
        values, ids = torch.topk(scores_UI, n, dim=1)
    else:
        # The n highest are in the n groups with the highest maxima, several times faster than
        # `torch.topk` of all. A group is every `n_groups`-th item; a few are behind the last group.
        n_grouped, device = n_groups * GROUP_SIZE, scores_UI.device
        highest_UG = scores_UI[:, :n_grouped].view(-1, GROUP_SIZE, n_groups).amax(1)
        groups = torch.topk(highest_UG, n, dim=1).indices[:, :, None]
        members = (groups + torch.arange(0, n_grouped, n_groups, device=device)).flatten(1)
        rest = torch.arange(n_grouped, n_items, device=device).expand(len(scores_UI), -1)
        candidates = torch.cat([members, rest], dim=1)
        values, index = torch.topk(scores_UI.gather(1, candidates), n, dim=1)
        ids = candidates.gather(1, index)
    ids_UK, last_U1 = ids[:, :k], values[:, k - 1 : k]
    is_tied_U = (values[:, k:] == last_U1).any(1)
    if bool(is_tied_U.any()):
        scores, last = scores_UI[is_tied_U], last_U1[is_tied_U]
        is_above, is_level = scores > last, scores == last
        n_wanted = k - is_above.sum(1, keepdim=True)
        is_chosen = is_above | (is_level & (is_level.cumsum(1, dtype=torch.int32) <= n_wanted))
        ids_UK[is_tied_U] = is_chosen.nonzero()[:, 1].view(-1, k)
    ids_UK = ids_UK.sort(dim=1).values
    values_UK, order_UK = scores_UI.gather(1, ids_UK).sort(dim=1, descending=True, stable=True)
    return values_UK, ids_UK.gather(1, order_UK)
