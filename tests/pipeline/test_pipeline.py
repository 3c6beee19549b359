"""Laws of the pipeline: it says what the recommender says, in whatever form it is asked."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.pipelines.pt_utils import KeyDataset

from ftmamba import Recommender
from ftmamba.checkpoint import load_checkpoint
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba import FTMambaFeatureExtractor, FTMambaTwoTowerModel
from modeling_ftmamba.pipeline_ftmamba import FTMambaRecommendationPipeline, add_pipeline

RECORDS = [
    {"age": 31, "occupation": "doctor"},
    {"gender": "F"},
    {},
    {"age": None, "occupation": "never seen", "shoe_size": 43},
    {"age": 50.5, "gender": "M", "occupation": "artist"},
]


ITEMS = [{"year": 1990}, {"year": 2000, "genres": ["war"]}]


class Rows(Dataset):
    """A data set that gives one row at a time, and counts how often it is asked."""

    def __init__(self, rows):
        self.rows, self.n_asked = rows, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        self.n_asked += 1
        return self.rows[row]


@pytest.fixture(scope="module")
def singles(recommend):
    return [recommend(record, top_k=7) for record in RECORDS]


def own_pipeline(checkpoint, **options):
    parts = (checkpoint.model, checkpoint.extractor, checkpoint.catalogue)
    return FTMambaRecommendationPipeline(*parts, **{"device": "cpu", **options})


def assert_close(answers, expected):
    """Compare answers that were embedded in batches of other sizes."""
    assert len(answers) == len(expected) > 0
    for answer, other in zip(answers, expected, strict=True):
        assert [(one["item_key"], one["title"]) for one in answer] == [
            (one["item_key"], one["title"]) for one in other
        ]
        scores = [[one["score"] for one in items] for items in (answer, other)]
        np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6)


def test_the_pipeline_recommends_what_the_recommender_does(recommend, checkpoint_folder):
    recommender = Recommender.from_pretrained(checkpoint_folder)
    for record in RECORDS:
        found = recommender.recommend(record=record, k=7)
        answer = recommend(record, top_k=7)
        assert answer == [
            {"item_key": one.item_key, "score": one.score, "title": one.title} for one in found
        ]
        assert type(answer[0]["score"]) is float


def test_the_best_are_the_head_of_the_whole_ranking(recommend):
    whole = recommend(RECORDS[0], top_k=20)
    assert len({one["item_key"] for one in whole}) == 20
    assert recommend(RECORDS[0], top_k=3) == whole[:3]
    assert recommend(RECORDS[0]) == whole[:10]


def test_what_is_excluded_leaves_the_rest_in_order(recommend):
    whole = recommend(RECORDS[0], top_k=20)
    exclude = [whole[0]["item_key"], whole[2]["item_key"], "no such item"]
    assert recommend(RECORDS[0], top_k=5, exclude=exclude) == [whole[1], *whole[3:7]]
    assert recommend(RECORDS[0], top_k=20, exclude=exclude) == [whole[1], *whole[3:]]
    assert recommend(RECORDS[0], exclude=[one["item_key"] for one in whole]) == []
    assert recommend(RECORDS[0], top_k=20) == whole


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5, 100])
def test_a_list_is_answered_as_its_records_one_by_one(recommend, singles, batch_size):
    answers = recommend(RECORDS, top_k=7, batch_size=batch_size)
    assert isinstance(answers, list)
    assert_close(answers, singles)
    assert recommend([]) == []


def test_columns_named_like_a_chat_are_a_record(recommend):
    record = {"role": "user", "content": "text", "age": 31}
    assert recommend([record], top_k=2) == recommend([{"age": 31}], top_k=2)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_generator_is_read_as_its_answers_are(recommend, singles, batch_size):
    n_read = 0

    def records():
        nonlocal n_read
        for record in RECORDS:
            n_read += 1
            yield record

    answers = recommend(records(), top_k=7, batch_size=batch_size)
    assert n_read == 0
    first = next(answers)
    assert n_read == (batch_size or 1)
    assert_close([first, *answers], singles)
    assert n_read == len(RECORDS)


def test_a_data_set_is_answered_row_by_row(recommend, singles):
    data = Rows(RECORDS)
    answers = recommend(data, top_k=7, batch_size=2)
    assert data.n_asked == 0
    assert_close(list(answers), singles)
    nested = KeyDataset([{"user": record} for record in RECORDS], "user")
    assert_close(list(recommend(nested, top_k=7)), singles)
    table = datasets.Dataset.from_list([{"age": 31, "occupation": "doctor"}, {"age": 50}])
    assert_close(list(recommend(table, top_k=3)), [recommend(row, top_k=3) for row in table])


def test_the_pipeline_has_defaults_of_its_calls(checkpoint_folder):
    own = own_pipeline(load_checkpoint(checkpoint_folder), top_k=2, exclude=["i00"])
    assert len(own(RECORDS[0])) == 2
    assert "i00" not in [one["item_key"] for one in own(RECORDS[0], top_k=19)]
    assert "i00" in [one["item_key"] for one in own(RECORDS[0], top_k=20, exclude=[])]
    assert own.predict([RECORDS[0]]) == [own(RECORDS[0])]


def test_a_model_in_training_mode_recommends_without_dropout(checkpoint_folder, recommend):
    loaded = load_checkpoint(checkpoint_folder)
    loaded.model.train()
    assert own_pipeline(loaded)(RECORDS[0]) == recommend(RECORDS[0])
    assert not loaded.model.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_stale_catalogue_is_refused_in_whatever_type_the_model_is_loaded(
    checkpoint_folder, tmp_path, dtype
):
    folder = shutil.copytree(checkpoint_folder, tmp_path / "tuned")

    def load():
        model = FTMambaTwoTowerModel.from_pretrained(folder, dtype=getattr(torch, dtype))
        extractor = FTMambaFeatureExtractor.from_pretrained(folder)
        return FTMambaRecommendationPipeline(model, extractor, task="recommendation", device="cpu")

    assert load().model.dtype == getattr(torch, dtype)
    model = FTMambaTwoTowerModel.from_pretrained(folder)
    with torch.no_grad():
        model.item_tower.head[0].weight.neg_()
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="the catalogue was embedded by other weights"):
        load()


def test_half_precision_recommends_much_the_same(checkpoint_folder, recommend):
    loaded = load_checkpoint(checkpoint_folder)
    loaded.model.to(torch.bfloat16)
    exact, rough = (
        {one["item_key"]: one["score"] for one in pipe(RECORDS[0], top_k=20)}
        for pipe in (recommend, own_pipeline(loaded))
    )
    assert exact.keys() == rough.keys()
    assert exact != rough
    found = [rough[key] for key in exact]
    torch.testing.assert_close(found, list(exact.values()), rtol=0.1, atol=0.02)


def test_a_saved_pipeline_is_a_whole_one(recommend, tmp_path: Path):
    recommend.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path)
    again = FTMambaRecommendationPipeline(
        loaded.model, loaded.extractor, tmp_path / "catalogue.safetensors", device="cpu"
    )
    assert again(RECORDS[0]) == recommend(RECORDS[0])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["custom_pipelines"]["recommendation"]["impl"] == (
        "pipeline_ftmamba.FTMambaRecommendationPipeline"
    )
    assert (tmp_path / "pipeline_ftmamba.py").is_file()


def test_what_the_trainer_of_transformers_saves_is_a_checkpoint(tiny_checkpoint, tmp_path: Path):
    """With `training_args.bin` beside it, a pickle that is ignored, and fields of its own."""
    extractor, n_rows = tiny_checkpoint.extractor, 8
    encoded = dict(extractor(users=[{"age": 20 + row} for row in range(n_rows)]))
    encoded |= extractor(items=[{"year": 1990 + row} for row in range(n_rows)])
    rows = [
        {name: values[row] for name, values in encoded.items()} | {"labels": row % 4}
        for row in range(n_rows)
    ]
    model = FTMambaTwoTowerModel(tiny_checkpoint.model.config)
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, **options
    )
    trainer = Trainer(model, arguments, train_dataset=Rows(rows))
    trainer.train()
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    assert (folder / "training_args.bin").is_file()
    extractor.save_pretrained(folder)
    add_pipeline(folder)
    loaded = FTMambaTwoTowerModel.from_pretrained(folder)
    catalogue = embed_catalogue(loaded, extractor(items=ITEMS), keys=["a", "b"], titles=())
    catalogue.save(folder / "catalogue.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "note": "mine", "use_cache": True}))
    again = FTMambaFeatureExtractor.from_pretrained(folder)
    model = FTMambaTwoTowerModel.from_pretrained(folder)
    pipe = FTMambaRecommendationPipeline(model, again, catalogue, device="cpu")
    found = Recommender.from_pretrained(folder).recommend(record=RECORDS[0], k=2)
    assert [one["item_key"] for one in pipe(RECORDS[0])] == [one.item_key for one in found]


def test_tensor_names_tell_the_truth(recommend, checked_shapes):
    with checked_shapes("modeling_ftmamba"):
        assert recommend(RECORDS, top_k=3, exclude=["i01"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_recommends_what_the_processor_does(checkpoint_folder, singles):
    own = own_pipeline(load_checkpoint(checkpoint_folder), device="cuda")
    assert_close(own(RECORDS, top_k=7), singles)
