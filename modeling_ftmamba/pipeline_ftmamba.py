"""`pipeline("recommendation", model=..., trust_remote_code=True)`: raw records in, items out.

Shapes: B records, I items, E embedding, K recommendations.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline
from transformers.utils.hub import cached_file

from .attribution import explain
from .catalogue_file import CATALOGUE_NAME, Catalogue, load_catalogue, weights_fingerprint
from .encoders import text_table
from .pipeline_files import add_pipeline
from .pipeline_inputs import (
    WrongInputError,
    check_batch_size,
    check_parameters,
    check_record,
    check_top_k,
    item_keys,
    place_of_row,
    records_of,
    wrong_value,
)
from .processing_ftmamba import HistoryReader, name_of
from .ranking import top_k as best

_TOP_K = 10
_RECORDS_AT_A_TIME = 1024
_SCORES_AT_A_TIME = 2**24
_TAKEN = "taken"
"""Beside a batch's tensors: the items of its histories, for `TwoTowerNetwork.scores`."""

Answer = list[dict[str, Any]]
"""The items recommended for one record, best first: `item_key`, `score` and `title` of each."""


class FTMambaRecommendationPipeline(Pipeline):
    """Recommend items of a checkpoint's catalogue for raw records of users.

    A score is the inner product of the user's and the item's embedding over the temperature, with
    the `repeat_bias` of a model that has one for items of the user's history; it is comparable
    between the items of one record only. Equal scores are ordered as in the catalogue.

    Args:
        model: both towers.
        feature_extractor: fitted, of the same checkpoint.
        catalogue: the items, or the file that holds them; the default is the checkpoint's.
        options: what every pipeline takes, such as `device` and `batch_size`, and defaults of the
            calls' `top_k` and `exclude`.

    Raises:
        FileNotFoundError: the checkpoint was saved without its catalogue.
        ValueError: the catalogue was embedded by other weights.

    Example:
        >>> recommend = pipeline("recommendation", "user/name", trust_remote_code=True)
        ... # doctest: +SKIP
        >>> recommend({"age": 31, "occupation": "doctor"}, top_k=1)  # doctest: +SKIP
        [{'item_key': '50', 'score': 3.2, 'title': 'Star Wars (1977)'}]
    """

    model: Any
    feature_extractor: Any
    _load_tokenizer: Any = False
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = True

    def __init__(
        self,
        model: Any,
        feature_extractor: Any,
        catalogue: Catalogue | str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model=model, feature_extractor=feature_extractor, **options)
        model.train(False)
        if catalogue is None or isinstance(catalogue, str | Path):
            catalogue = load_catalogue(Path(catalogue or _find_catalogue(model, feature_extractor)))
        _check_fingerprint(catalogue, model)
        self.catalogue = catalogue
        self._texts = text_table(catalogue.keys), text_table(catalogue.titles)
        self._items_IE = torch.from_numpy(catalogue.embeddings).to(self.device)
        self._read_history = HistoryReader(model, feature_extractor, catalogue, self._items_IE)
        columns = feature_extractor.columns("user")
        self._names = frozenset(column.name for column in columns)
        self._name_of_place = {name_of(column, "user"): column.name for column in columns}

    def __call__(
        self, inputs: Any, *args: Any, batch_size: int | None = None, **parameters: Any
    ) -> Any:
        """Recommend for one record, or for each of many.

        Args:
            inputs: a raw record, a list of records, or anything that gives records one by one (a
                generator, a data set), of which answers come one by one too. Absent columns are
                missing values; others than the model's are left out.
            args: none.
            batch_size: records taken together; by default as many as fit of what has a length, and
                each by itself of what has none.
            parameters: `top_k`, how many items a record (default 10, or all of a smaller
                catalogue), of which fewer come only where the items left out leave fewer;
                `exclude`, keys of items to leave out, of which unknown ones are ignored.

        Returns:
            For one record an `Answer`, for a list a list of them, otherwise an iterator of them.

        Raises:
            WrongInputError: something in the input cannot be; it says what, where and how to mend
                it.
        """
        if args:
            raise ValueError(f"give top_k and exclude by name, as in top_k=10; got {args!r}")
        options = {**self._forward_params, **self._sanitize_parameters(**parameters)[1]}
        n_items = len(self.catalogue)
        check_top_k(options.setdefault("top_k", min(_TOP_K, n_items)), n_items)
        if isinstance(inputs, Mapping):
            return self._answers([inputs], 0, options)[0]
        chosen = self._batch_size if batch_size is None else batch_size
        size = self._records_at_a_time(chosen, inputs)
        answers = self._stream(records_of(inputs), size, options)
        return list(answers) if isinstance(inputs, list | tuple) else answers

    def explain(self, record: Mapping[str, Any], item_key: str) -> dict[str, Any]:
        """Say what each column of the user and of the item adds to their score.

        The baseline is the score when every column of both is missing; it and the shares add up
        to the score. The shares are Shapley values: exact up to 10 columns a tower, beyond that
        with the `standard_error` that is given.

        Args:
            record: raw columns of the user.
            item_key: of an item of the catalogue.

        Returns:
            `user` and `item`, the share of every column; `user_values` and `item_values`, what the
            model read there; `score`, `baseline_score`, `standard_error`, `item_key`, `title`.

        Raises:
            ValueError: a wrong record, or no such item.
        """
        check_record(record, 0, self._names)
        events = self._read_history.events([record])
        return explain(
            self.model, self.feature_extractor, self.catalogue, record, item_key,
            self._read_history.of_events(events), self._read_history.seen(events),
        )  # fmt: skip

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Save all that a pipeline is made of: model, extractor, catalogue and code."""
        super().save_pretrained(save_directory, **options)
        self.catalogue.save(Path(save_directory) / CATALOGUE_NAME)
        add_pipeline(Path(save_directory))

    def get_inference_context(self) -> Any:
        return torch.inference_mode

    def _sanitize_parameters(
        self, **pipeline_parameters: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        check_parameters(pipeline_parameters, ("top_k", "exclude"))
        if "exclude" in pipeline_parameters:
            pipeline_parameters["exclude"] = item_keys(pipeline_parameters["exclude"])
        return {}, pipeline_parameters, {}

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        """Encode a list of records, and what their histories' events are of."""
        encoded = dict(self.feature_extractor(users=input_, return_tensors="pt"))
        events = self._read_history.events(input_)
        taken = self._read_history.seen(events)
        return encoded | self._read_history.of_events(events) | {_TAKEN: taken}

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> Any:
        tensors = {name: one for name, one in input_tensors.items() if name != _TAKEN}
        users_BE = self.model.get_user_embeddings(**tensors).to(self._items_IE.dtype)
        scores_BI = self.model.scores(users_BE, self._items_IE, input_tensors[_TAKEN])
        hidden = self.catalogue.rows_of_known(forward_parameters.get("exclude", ()))
        if len(hidden):
            scores_BI[:, torch.from_numpy(hidden).to(self.device)] = -torch.inf
        scores_BK, rows_BK = best(scores_BI, forward_parameters["top_k"])
        return {"scores": scores_BK, "rows": rows_BK, "is_finite": users_BE.isfinite().all(1)}

    def postprocess(self, model_outputs: Any, **_: Any) -> list[Answer]:
        """Give the best items their keys and titles."""
        rows_BK, scores_BK = model_outputs["rows"], model_outputs["scores"]
        rows = rows_BK.flatten().numpy()
        keys, titles = (texts.take(rows) for texts in self._texts)
        items = [
            {"item_key": key, "score": score, "title": title}
            for key, score, title in zip(keys, scores_BK.flatten().tolist(), titles, strict=True)
        ]
        n_kept = (scores_BK != -torch.inf).sum(1).tolist()
        top_k = rows_BK.shape[1]
        return [items[row * top_k : row * top_k + kept] for row, kept in enumerate(n_kept)]

    def _stream(
        self, records: Iterator[Any], size: int, options: dict[str, Any]
    ) -> Iterator[Answer]:
        first = 0
        while block := list(islice(records, size)):
            yield from self._answers(block, first, options)
            first += len(block)

    def _answers(self, records: list[Any], first: int, options: dict[str, Any]) -> list[Answer]:
        """Answer for records of which the first has a number among all that were given."""
        for row, record in enumerate(records, start=first):
            check_record(record, row, self._names)
        try:
            inputs = self.preprocess(records)
        except ValueError as error:
            # By its fields: in a local folder the extractor's class of error is not ours.
            column = self._name_of_place.get(getattr(error, "name", ""))
            if column is None:
                raise
            raise wrong_value(error, first, column) from None
        outputs: dict[str, Tensor] = self.forward(inputs, **options)
        if not bool(outputs["is_finite"].all()):
            row = first + int(outputs["is_finite"].int().argmin())
            raise WrongInputError(
                f"the embedding of {place_of_row(row)} is not finite; its columns hold values too "
                "large for the model, or the weights are damaged",
                "inputs",
                row,
            )
        return self.postprocess(outputs)

    def _records_at_a_time(self, batch_size: int | None, inputs: object) -> int:
        if batch_size is not None:
            check_batch_size(batch_size)
            return batch_size
        most = max(1, _SCORES_AT_A_TIME // len(self.catalogue))
        return min(_RECORDS_AT_A_TIME, most) if hasattr(inputs, "__len__") else 1


def _find_catalogue(model: Any, feature_extractor: Any) -> str:
    path = getattr(feature_extractor, "catalogue_path", None)
    if path is None and model.name_or_path:
        path = cached_file(
            model.name_or_path,
            CATALOGUE_NAME,
            revision=getattr(model.config, "_commit_hash", None),
            _raise_exceptions_for_missing_entries=False,
        )
    if path is None:
        raise FileNotFoundError(
            f"{model.name_or_path or 'the model'!r} has no {CATALOGUE_NAME}: it was saved without "
            "its items, so there is nothing to recommend; give "
            f"catalogue='path/to/{CATALOGUE_NAME}', or embed items of your own with "
            "model.get_item_embeddings(...)"
        )
    return path


def _check_fingerprint(catalogue: Catalogue, model: Any) -> None:
    """Refuse a catalogue of other weights; of weights in another type than saved nobody can say."""
    if model.dtype == torch.float32 and catalogue.fingerprint != weights_fingerprint(model):
        raise ValueError(
            "the catalogue was embedded by other weights than the model's; take both from one "
            "revision of one checkpoint"
        )
