"""`pipeline("recommendation", model=..., trust_remote_code=True)`: raw records in, items out.

Shapes: B records, I items, E embedding, K recommendations.
"""

import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.hub import cached_file

from .catalogue import CATALOGUE_NAME, Catalogue, load_catalogue
from .configuration_ftmamba import near
from .encoders import text_table
from .processing_ftmamba import WHOLE_RECORD, HistoryReader, name_of

_PARAMETERS = ("top_k", "exclude", "exclude_seen")
_RECORDS_AT_ONCE = 1024
_SCORES_AT_ONCE = 2**24
_ROWS = "rows"  # beside a batch's tensors: the items of its histories, for `scores`

Answer = list[dict[str, Any]]  # items, best first: `item_key`, `score` and `title` of each


class WrongInputError(ValueError):
    """An input breaks a rule: `inputs` or another parameter, perhaps in one row or column."""

    def __init__(
        self, message: str, parameter: str, row: int | None = None, column: str | None = None
    ) -> None:
        super().__init__(message if row is None else f"record {row} (the first is 0){message}")
        self.parameter, self.row, self.column = parameter, row, column


class FTMambaRecommendationPipeline(Pipeline):
    """Recommend items of a checkpoint's catalogue for raw records of users.

    Scores are comparable between the items of one record only; equal ones are ordered as in the
    catalogue.

    Args:
        model: both towers.
        feature_extractor: of the same checkpoint.
        catalogue: the items, or the file that holds them; the default is the checkpoint's.
        options: of every pipeline, such as `device` and `batch_size`, and defaults of the calls'
            `top_k` and `exclude`.

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
        model.check_in_memory()
        super().__init__(model=model, feature_extractor=feature_extractor, **options)
        model.train(False)
        if catalogue is None:
            catalogue = getattr(feature_extractor, "catalogue_path", None)
        if catalogue is None and model.name_or_path:
            options = {"revision": getattr(model.config, "_commit_hash", None)}
            options["_raise_exceptions_for_missing_entries"] = False
            catalogue = cached_file(model.name_or_path, CATALOGUE_NAME, **options)
        if catalogue is None:
            problem = f"{model.name_or_path or 'the model'!r} has no {CATALOGUE_NAME}"
            raise FileNotFoundError(f"{problem}; give catalogue=..., its file or a `Catalogue`")
        if not isinstance(catalogue, Catalogue):
            catalogue = load_catalogue(Path(catalogue))
        if not catalogue.is_of(model):
            problem = "the catalogue was embedded by other weights than the model's"
            raise ValueError(f"{problem}; take both from one revision of one checkpoint")
        self.catalogue = catalogue
        self._items_IE = torch.from_numpy(catalogue.embeddings).to(self.device)
        self._history = HistoryReader(model, feature_extractor, catalogue, self._items_IE)
        self._columns = {name_of(c, "user"): c.name for c in feature_extractor.columns("user")}

    def __call__(
        self, inputs: Any, *args: Any, batch_size: int | None = None, **parameters: Any
    ) -> Any:
        """Return the `Answer` for one record, a list of them for a list, an iterator for the rest.

        Inputs are a raw record, a list of records, or anything that yields records (a generator, a
        data set), which is read as its answers are. Absent columns are missing values. Unknown
        columns are ignored, but a misspelt one is refused. A WrongInputError names what is wrong.

        `batch_size` records are embedded together; the default depends on the catalogue, and is 1
        where inputs have no length. The parameters are `top_k`, by default 10 or all of a smaller
        catalogue; `exclude`, keys of items to leave out, where keys of no item are ignored; and
        `exclude_seen`, whether to leave out the items of a record's history, by default as the
        model was evaluated. An answer has fewer than `top_k` items only where fewer are left.
        """
        if args:
            raise ValueError(f"give top_k and exclude by name, as in top_k=10; got {args!r}")
        options = {**self._forward_params, **self._sanitize_parameters(**parameters)[1]}
        n_items = len(self.catalogue)
        _check_count("top_k", options.setdefault("top_k", min(10, n_items)), n_items)
        try:
            options["exclude"] = self.catalogue.excluded(options.get("exclude", ()))
        except ValueError as error:
            raise WrongInputError(str(error), "exclude") from None
        if isinstance(inputs, Mapping):
            return self._answers([inputs], 0, options)[0]
        size = self._batch_size if batch_size is None else batch_size
        if size is None:
            fitting = max(1, min(_RECORDS_AT_ONCE, _SCORES_AT_ONCE // n_items))
            size = fitting if hasattr(inputs, "__len__") else 1
        _check_count("batch_size", size, _RECORDS_AT_ONCE**2)
        answers = self._stream(_records_of(inputs), size, options)
        return list(answers) if isinstance(inputs, list | tuple) else answers

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Save all that a pipeline is made of: model, extractor, catalogue and code."""
        super().save_pretrained(save_directory, **options)
        self.catalogue.save(Path(save_directory) / CATALOGUE_NAME)
        add_pipeline(Path(save_directory))

    def _sanitize_parameters(self, **pipeline_parameters: Any) -> Any:
        for name in set(pipeline_parameters) - set(_PARAMETERS):
            guess, known = near(name, _PARAMETERS), ", ".join(_PARAMETERS)
            raise WrongInputError(f"no parameter {name!r}{guess}; there are: {known}", name)
        if pipeline_parameters.get("exclude_seen") not in (None, True, False):
            raise WrongInputError("exclude_seen must be true, false or None", "exclude_seen")
        return {}, pipeline_parameters, {}

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        """Encode a list of records, and the events of their histories."""
        encoded = dict(self.feature_extractor(users=input_, return_tensors="pt"))
        events = self._history.events(input_)
        return encoded | self._history.of_events(events) | {_ROWS: self._history.rows(events)}

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> Any:
        tensors = {name: one for name, one in input_tensors.items() if name != _ROWS}
        users_BE = self.model.get_user_embeddings(**tensors).to(self._items_IE.dtype)
        scores_BI = self._history.scores(users_BE, input_tensors[_ROWS])
        k, seen = forward_parameters.pop("top_k"), input_tensors[_ROWS]
        scores_BK, rows_BK = self._history.best(scores_BI, k, seen, **forward_parameters)
        return {"scores": scores_BK, "rows": rows_BK}

    def postprocess(self, model_outputs: Any, **_: Any) -> list[Answer]:
        """Give the best items their keys and titles."""
        rows_BK, scores_BK = model_outputs["rows"], model_outputs["scores"]
        rows, scores = rows_BK.flatten().numpy(), scores_BK.flatten().tolist()
        keys, titles = text_table(self.catalogue.keys), text_table(self.catalogue.titles)
        items = [
            {"item_key": key, "score": score, "title": title}
            for key, score, title in zip(keys.take(rows), scores, titles.take(rows), strict=True)
        ]
        n_kept, k = (scores_BK != -torch.inf).sum(1).tolist(), rows_BK.shape[1]
        return [items[row * k : row * k + kept] for row, kept in enumerate(n_kept)]

    def _stream(self, records: Iterator[Any], size: int, options: Any) -> Iterator[Answer]:
        first = 0
        while block := list(islice(records, size)):
            yield from self._answers(block, first, options)
            first += len(block)

    def _answers(self, records: list[Any], first: int, options: dict[str, Any]) -> list[Answer]:
        """Answer for records; `first` is the row of the first among all that were given."""
        try:
            return self.postprocess(self.forward(self.preprocess(records), **options))
        except ValueError as error:
            # By its attributes: in a local folder the extractor's class of error is not ours.
            wrong: Any = error
            column = self._columns.get(name := getattr(error, "name", ""))
            if column is None and name != WHOLE_RECORD:
                raise
            problem = f", column {column!r}" if column else ""
            raise WrongInputError(
                f"{problem}: {wrong.problem}", "inputs", first + wrong.row, column
            ) from None


def add_pipeline(folder: Path) -> None:
    """Declare the pipeline in the `config.json` of a saved model, and copy its code there."""
    path = folder / "config.json"
    impl = f"{Path(__file__).stem}.{FTMambaRecommendationPipeline.__name__}"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["custom_pipelines"] = {"recommendation": {"impl": impl, "pt": ["AutoModel"]}}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    custom_object_save(FTMambaRecommendationPipeline, folder)
    for written in folder.glob("*.safetensors"):  # which safetensors keeps from other people
        written.chmod(path.stat().st_mode)


def _records_of(inputs: Any) -> Iterator[Any]:
    """Return the records of a list, a generator or a data set one by one."""
    is_table = hasattr(inputs, "columns") and not {"to_dict", "to_pylist"}.isdisjoint(dir(inputs))
    if not is_table and not isinstance(inputs, str | bytes):
        if hasattr(inputs, "__iter__"):
            return iter(inputs)
        if hasattr(inputs, "__len__"):
            return (inputs[row] for row in range(len(inputs)))
    rule = "inputs must be a record (dict), a list of records, a generator or a data set of them"
    raise WrongInputError(
        f"{rule}, got {' '.join(repr(inputs).split()):.80}; write table.to_dict('records') for a "
        "table of pandas, table.to_dicts() for polars, table.to_pylist() for Arrow",
        "inputs",
    )


def _check_count(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        rule = f"{name} must be a whole number from 1 to {most}"
        raise WrongInputError(f"{rule}; got {value!r:.80}", name)
