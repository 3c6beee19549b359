"""Whatever is wrong with a request is said in words, with its place and a remedy."""

import shutil

import pandas
import pyarrow as pa
import pytest
import torch

from ftmamba.checkpoint import load_checkpoint
from modeling_ftmamba.configuration_ftmamba import UNSEEN_ID
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline, WrongInputError

WRONG = [
    ({"agee": 31}, {}, r"record 0 .* no known columns, got: agee; did you mean 'age'"),
    ([{"age": 3}, {"agee": 3}], {}, r"record 1 \(the first is 0\): no known columns"),
    ([{"age": 3}, {"age": 3, "ocupation": "x"}], {}, "record 1 .* did you mean 'occupation'"),
    ({"age": "old"}, {}, r"record 0 .*, column 'age': must be a finite number, got 'old'"),
    ({"age": float("inf")}, {}, "column 'age': must be a finite number, got inf"),
    ([{"age": 3}, {"gender": {}}], {}, "record 1 .*, column 'gender': must be a single text"),
    ([{"age": 3}, 4], {}, "record 1 .* must be a dict of column name to value, got 4"),
    ("31", {}, r"inputs must be a record \(dict\), a list of records.*, got '31'"),
    (31, {}, "inputs must be a record .* got 31"),
    (pandas.DataFrame({"age": [31]}), {}, r"inputs must be .*; write table.to_dict\('records'\)"),
    (pa.table({"age": [31]}), {}, r"inputs must be .*table.to_pylist\(\) for Arrow"),
    ({}, {"top_k": 0}, "top_k must be a whole number from 1 to 20; got 0"),
    ([], {"top_k": 21}, "top_k must be .*; got 21"),
    ({}, {"top_k": True}, "top_k must be .*; got True"),
    ({}, {"top_k": 2.0}, "top_k must be .*; got 2.0"),
    ({}, {"exclude": "i00"}, r"exclude must be a list of item keys.*got 'i00'"),
    ({}, {"exclude": [[7]]}, r"an item's key must be a single text, number, .*, got \[7\]"),
    ({}, {"topk": 3}, "no parameter 'topk'; did you mean 'top_k'"),
    ([{}], {"batch_size": 0}, "batch_size must be a whole number .*; got 0"),
]


@pytest.mark.parametrize(("inputs", "parameters", "message"), WRONG)
def test_a_wrong_request_is_told_what_and_where(recommend, inputs, parameters, message):
    with pytest.raises(WrongInputError, match=message):
        recommend(inputs, **parameters)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
@pytest.mark.parametrize("wrong", [{"age": "old"}, {"agee": 1}, None])
def test_a_wrong_record_has_the_same_number_in_batches_of_any_size(recommend, wrong, batch_size):
    records = [{"age": 3}] * 5 + [wrong] + [{"age": 3}]
    with pytest.raises(WrongInputError, match=r"record 5 \(the first is 0\)") as caught:
        recommend(records, batch_size=batch_size)
    assert (caught.value.parameter, caught.value.row) == ("inputs", 5)
    assert caught.value.column == ("age" if wrong == {"age": "old"} else None)


def test_a_generator_gives_the_answers_before_a_wrong_record(recommend):
    answers = recommend(iter([{"age": 3}, {"age": "old"}]), top_k=1)
    assert next(answers)
    with pytest.raises(WrongInputError, match="record 1"):
        next(answers)


def test_a_positional_parameter_is_refused(recommend):
    with pytest.raises(ValueError, match=r"give top_k and exclude by name, .* got \(5,\)"):
        recommend({}, 5)


def test_a_long_wrong_value_is_cut_short(recommend):
    with pytest.raises(WrongInputError) as caught:
        recommend({"age": "x" * 10_000})
    assert len(str(caught.value)) < 250


def test_an_embedding_that_is_not_finite_is_told(checkpoint_folder):
    loaded = load_checkpoint(checkpoint_folder)
    parts = (loaded.model, loaded.extractor, loaded.catalogue)
    own = FTMambaRecommendationPipeline(*parts, device="cpu")
    with torch.no_grad():
        loaded.model.user_tower.tokenizer.kinds["category_ids"].table.weight[UNSEEN_ID] = torch.nan
    with pytest.raises(WrongInputError, match=r"record 3 \(the first is 0\).* not finite"):
        own([{"age": 31}, {"gender": "F"}, {}, {"gender": "unseen"}], batch_size=2)


def test_a_checkpoint_without_a_catalogue_says_how_to_go_on(checkpoint_folder, tmp_path):
    shutil.copytree(checkpoint_folder, tmp_path / "bare")
    (tmp_path / "bare" / "catalogue.safetensors").unlink()
    loaded = load_checkpoint(checkpoint_folder)
    loaded.model.name_or_path = str(tmp_path / "bare")
    message = "bare' has no catalogue.safetensors; give catalogue="
    with pytest.raises(FileNotFoundError, match=message):
        FTMambaRecommendationPipeline(loaded.model, loaded.extractor, device="cpu")
    given = checkpoint_folder / "catalogue.safetensors"
    own = FTMambaRecommendationPipeline(loaded.model, loaded.extractor, given, device="cpu")
    assert own({"age": 31})


def test_a_catalogue_of_other_weights_is_refused(checkpoint_folder):
    loaded = load_checkpoint(checkpoint_folder)
    with torch.no_grad():
        loaded.model.log_temperature += 1e-3
    with pytest.raises(ValueError, match="embedded by other weights than the model's; take both"):
        FTMambaRecommendationPipeline(
            loaded.model, loaded.extractor, loaded.catalogue, device="cpu"
        )
