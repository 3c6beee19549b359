"""From raw records to the model's tensors, the same for one record and for a whole table.

Shapes: B records, W slots of one column.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import FEATURE_EXTRACTOR_NAME

from .catalogue import CATALOGUE_NAME
from .checked_files import commit_of, damaged, read_json, shown
from .checked_weights import HUB_KEYS, find_file
from .columns import Column, check_columns, column_from_dict, columns_of_tensor, near
from .tower_encoder import DTYPES, TowerEncoder, numeric_slots
from .vocabulary_file import (
    VOCABULARY_NAME,
    fingerprint_of,
    read_arrays,
    replace_file,
    write_arrays,
)

TOWERS = ("user", "item")
FORMAT_VERSION = 1
_CLASS_REFERENCE = "processing_ftmamba.FTMambaFeatureExtractor"
# What `preprocessor_config.json` holds; `get_feature_extractor_dict` adds what it has read.
_JSON_TYPES = {
    "auto_map": dict,
    "feature_extractor_type": str,
    "fingerprint": str,
    "format_version": int,
    "item_columns": list,
    "item_key": str,
    "user_columns": list,
    "user_key": str,
}
_FILE_KEYS = frozenset([*_JSON_TYPES, "arrays", "catalogue_path", "processor_class"])


class FTMambaFeatureExtractor(FeatureExtractionMixin):
    """Encode users and items for `FTMambaTwoTowerModel`; fitted on training rows only.

    Missing values (None, NaN, an absent column) and unseen categories have encodings of their own
    and are never errors; a value of the wrong type is.

    Args:
        user_columns: dictionaries of `Column`, in the order of the tokens.
        item_columns: the same of the items.
        user_key: name of the column that identifies a user; kept for who reads the checkpoint.
        item_key: the same of the items.

    Attributes:
        catalogue_path: where the catalogue of the same repository and revision lies; known only to
            an extractor that was loaded for a pipeline, and None if there is none.

    Raises:
        ValueError: an unknown argument, a bad column, or two columns of one name.

    Example:
        >>> extractor = FTMambaFeatureExtractor(
        ...     user_columns=[{"name": "age", "kind": "numeric"}],
        ...     item_columns=[{"name": "genre", "kind": "categorical"}],
        ... )
        >>> extractor.fit({"age": [20, 40]}, {"genre": ["drama", "war", "drama"]})
        >>> extractor(users={"age": 30}, items=[{"genre": "war"}, {}])["item_category_ids"]
        tensor([[4],
                [1]])
    """

    # `save_pretrained` copies this folder's code beside the files for `AutoFeatureExtractor`.
    _auto_class = "AutoFeatureExtractor"

    def __init__(
        self,
        user_columns: Iterable[Mapping[str, Any]] = (),
        item_columns: Iterable[Mapping[str, Any]] = (),
        user_key: str = "",
        item_key: str = "",
        **kwargs: Any,
    ) -> None:
        _check_keys(kwargs)
        self._columns = {
            "user": _parse_columns(user_columns, "user"),
            "item": _parse_columns(item_columns, "item"),
        }
        self._declared = self._columns
        self._encoders: dict[str, TowerEncoder] = {}
        self._fingerprint = ""
        self.user_key = user_key
        self.item_key = item_key
        self.catalogue_path: str | None = kwargs.get("catalogue_path")
        super().__init__()
        if "arrays" in kwargs:
            self._set_encoders(
                {
                    tower: TowerEncoder.from_arrays(tower, columns, kwargs["arrays"])
                    for tower, columns in self._columns.items()
                }
            )

    @property
    def user_columns(self) -> list[dict[str, Any]]:
        """The user columns with their fitted fields, as `FTMambaConfig` takes them."""
        return [column.to_dict() for column in self._columns["user"]]

    @property
    def item_columns(self) -> list[dict[str, Any]]:
        """The item columns with their fitted fields, as `FTMambaConfig` takes them."""
        return [column.to_dict() for column in self._columns["item"]]

    @property
    def model_input_names(self) -> list[str]:
        """The tensors that both towers need."""
        return [
            f"{tower}_{tensor}"
            for tower in TOWERS
            for tensor in DTYPES
            if columns_of_tensor(self._columns[tower], tensor)
        ]

    def columns(self, tower: str) -> tuple[Column, ...]:
        """Return the columns of the `user` or `item` tower, fitted fields included."""
        if tower not in TOWERS:
            raise ValueError(f"tower must be one of {', '.join(TOWERS)}, got {tower!r}")
        return self._columns[tower]

    def fit(self, users: Any, items: Any) -> None:
        """Learn vocabularies, scales and bins of both towers from training rows.

        A column of popularity is given like the others, as raw values (`Column`). Fitting again
        starts from the columns as they were declared.

        Args:
            users: a table of Arrow, pandas, polars or datasets, a dict of column name to array, in
                which columns may differ in length, or a list of records.
            items: the same of the items.

        Raises:
            ValueError: a column is absent or empty, or a value has the wrong type.
        """
        self._set_encoders(
            {
                "user": TowerEncoder.fit("user", self._declared["user"], users),
                "item": TowerEncoder.fit("item", self._declared["item"], items),
            }
        )

    def __call__(
        self, users: Any = None, items: Any = None, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Encode users, items or both.

        Args:
            users: one record (a dict), a list of records, a dict of column name to array, or a
                table of Arrow, pandas, polars or datasets. A record may lack columns and have
                others; a record of nothing but unknown columns is an error.
            items: the same of the items.
            return_tensors: `pt` for torch tensors, `np` or None for numpy arrays.

        Returns:
            The tensors of `columns.py`, named `user_numeric`, ..., `item_dense`.

        Raises:
            ValueError: the extractor is not fitted, or a value has the wrong type.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}")
        arrays: dict[str, Any] = {}
        for tower, source in zip(TOWERS, (users, items), strict=True):
            if source is not None:
                arrays |= self._fitted()[tower].encode(source)
        if return_tensors == "pt":
            arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return BatchFeature(arrays)

    def describe(self, tower: str, inputs: Mapping[str, Any]) -> dict[str, str]:
        """Return in words what the model reads in each column of one encoded record.

        Args:
            tower: `user` or `item`.
            inputs: the record's tensors, as this extractor names them.
        """
        self.columns(tower)
        arrays = {name: np.asarray(values) for name, values in inputs.items()}
        return self._fitted()[tower].describe(arrays)

    def encode_numeric(
        self, tower: str, name: str, values: NDArray[Any] | list[Any]
    ) -> NDArray[np.float32]:
        """Scale raw values of one numeric column, such as popularity as of another time."""
        self.columns(tower)
        return self._fitted()[tower].encode_numeric(name, values)

    def numeric_slots(self, tower: str, names: Iterable[str]) -> list[int]:
        """Return the slots of numeric columns in the tower's tensor `numeric`."""
        return numeric_slots(self.columns(tower), names, tower)

    def known_values(self, tower: str, name: str) -> list[str]:
        """Return the texts that a `categorical` or `categories` column knows, by frequency."""
        self.columns(tower)
        return self._fitted()[tower].known_values(name)

    def _fitted(self) -> dict[str, TowerEncoder]:
        if not self._encoders:
            raise ValueError(
                "the feature extractor is not fitted; call fit(users, items) on training rows, or "
                "load a saved one with from_pretrained"
            )
        return self._encoders

    def _set_encoders(self, encoders: dict[str, TowerEncoder]) -> None:
        self._encoders = encoders
        self._columns = {tower: encoder.columns for tower, encoder in encoders.items()}
        self._fingerprint = fingerprint_of(self._arrays(), [self.user_columns, self.item_columns])

    def _arrays(self) -> dict[str, NDArray[Any]]:
        encoders = self._fitted()
        return encoders["user"].to_arrays() | encoders["item"].to_arrays()

    def to_dict(self) -> dict[str, Any]:
        """Return what `preprocessor_config.json` holds."""
        return {
            "feature_extractor_type": type(self).__name__,
            "auto_map": {
                "AutoFeatureExtractor": _CLASS_REFERENCE,
                "AutoProcessor": _CLASS_REFERENCE,
            },
            "format_version": FORMAT_VERSION,
            "fingerprint": self._fingerprint,
            "user_key": self.user_key,
            "item_key": self.item_key,
            "user_columns": self.user_columns,
            "item_columns": self.item_columns,
        }

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the JSON file and `vocabularies.safetensors` beside it, each whole or not at all.

        `save_pretrained` ends here, so that both files are there when it pushes to the Hub. The
        fingerprint in the JSON file shows if a crash fell between the two.
        """
        path = Path(json_file_path)
        write_arrays(path.with_name(VOCABULARY_NAME), self._arrays())
        replace_file(path, json.dumps(self.to_dict(), indent=2).encode() + b"\n")

    @classmethod
    def get_feature_extractor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read both files of a folder or a Hub id: what `from_pretrained` builds from.

        Raises:
            OSError: the repository or its `preprocessor_config.json` is not there.
            FileNotFoundError: `vocabularies.safetensors` is not there.
            ValueError: a file is damaged or of another version.
        """
        hub = {key: kwargs.pop(key) for key in HUB_KEYS if key in kwargs}
        for_pipeline = kwargs.pop("_from_pipeline", None) is not None
        kwargs.pop("_from_auto", None)
        place = Path(pretrained_model_name_or_path)
        source = str(place.parent if place.is_file() else pretrained_model_name_or_path)
        name = place.name if place.is_file() else FEATURE_EXTRACTOR_NAME
        config_path = find_file(source, name, hub)
        if config_path is None:
            raise FileNotFoundError(
                f"'{source}' has no {name}, or it is neither in the cache nor to be reached; give "
                "the folder of a checkpoint, or a Hub id"
            )
        values = read_json(config_path)
        _check_values(config_path, values)
        # The other files of the same commit, also if the branch moves on meanwhile.
        hub |= {"revision": commit_of(config_path) or hub.get("revision")}
        path = find_file(source, VOCABULARY_NAME, hub)
        if path is None:
            raise FileNotFoundError(
                f"'{source}' has a preprocessor_config.json but no {VOCABULARY_NAME}; download or "
                "save the checkpoint again"
            )
        arrays = read_arrays(path)
        columns = [values["user_columns"], values["item_columns"]]
        if fingerprint_of(arrays, columns) != values["fingerprint"]:
            raise damaged(
                path,
                "and the preprocessor_config.json beside it do not belong together: they are of "
                "two saves, or one was changed or damaged",
            )
        # A pipeline is not told revision and token, the extractor is.
        catalogue = find_file(source, CATALOGUE_NAME, hub) if for_pipeline else None
        return {**values, "arrays": arrays, "catalogue_path": catalogue and str(catalogue)}, kwargs


def _parse_columns(columns: Iterable[Mapping[str, Any]], tower: str) -> tuple[Column, ...]:
    parsed = tuple(column_from_dict(column) for column in columns)
    check_columns(parsed, tower)
    return parsed


def _check_keys(values: dict[str, Any]) -> None:
    for key in values:
        if key not in _FILE_KEYS:
            known = ["user_columns", "item_columns", "user_key", "item_key"]
            raise ValueError(
                f"FTMambaFeatureExtractor has no argument {key!r}{near(key, known)}; "
                f"it has: {', '.join(known)}"
            )


def _check_values(path: Path, values: dict[str, Any]) -> None:
    """Check what `preprocessor_config.json` holds, before anything is built from it."""
    version = values.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise damaged(
            path,
            f"has format_version {shown(version)}, this code reads {FORMAT_VERSION}",
            "load it with the code saved beside it (trust_remote_code=True) or install the "
            "release of ftmamba that wrote it",
        )
    for key in values:
        if key not in _JSON_TYPES:
            raise damaged(path, f"has no argument {shown(key)}{near(key, _JSON_TYPES)}")
    for key, kind in _JSON_TYPES.items():
        if not isinstance(values.get(key), kind):
            raise damaged(path, f"has {key} {shown(values.get(key))}, it must be a {kind.__name__}")
    for tower in TOWERS:
        try:
            _parse_columns(values[f"{tower}_columns"], tower)
        except ValueError as error:
            raise damaged(path, f"has columns that are none ({shown(str(error), 300)})") from None
