"""What the page asks of the recommender, without a browser."""

import pytest
import torch

from hub_cards.space_page import MOST_CHOICES, Demo, plane_of
from tests.space.conftest import HOSTILE_JOB, JOB, N_ITEMS


@pytest.fixture(scope="module")
def demo(model_folder):
    return Demo(str(model_folder))


def test_the_fields_are_the_users_columns_with_their_known_values(demo):
    assert [field.kind for field in demo.fields] == [
        "numeric", "categorical", "categories", "timestamp", "vector"
    ]  # fmt: skip
    assert set(demo.fields[1].choices) == {"artist", "nurse", HOSTILE_JOB}
    assert demo.fields[2].choices == ("tea", "war")
    assert demo.fields[0].choices == ()


def test_a_column_of_too_many_values_is_typed_not_picked(demo, monkeypatch):
    monkeypatch.setattr("hub_cards.space_page.MOST_CHOICES", 2)
    again = Demo.__new__(Demo)
    again._pipeline = demo._pipeline
    assert again.fields[1].choices == ()
    assert MOST_CHOICES > 2


def test_what_is_not_given_is_no_part_of_the_record(demo):
    assert demo.record([None, "", [], " ", ""]) == {}
    assert demo.record([31, " nurse ", ["tea"], "2024-01-01", "0.5, 1"]) == {
        "age": 31, JOB: "nurse", "likes": ["tea"], "joined": "2024-01-01", "taste": [0.5, 1.0]
    }  # fmt: skip


def test_a_vector_that_is_none_is_refused(demo):
    with pytest.raises(ValueError, match="taste must be numbers with commas between them"):
        demo.record([None, "", [], "", "a, b"])


def test_the_list_is_the_pipelines_and_never_longer_than_the_catalogue(demo):
    record = {"age": 31, JOB: "nurse"}
    listed = demo.recommend(record, 5)
    answers = demo._pipeline(record, top_k=5)
    assert [item.key for item in listed] == [one["item_key"] for one in answers]
    assert len(demo.recommend(record, 10**6)) == N_ITEMS
    assert len(demo.recommend({}, 3)) == 3


def test_the_nearest_are_those_of_the_largest_cosines_without_the_item_itself(demo):
    near = demo.nearest("i07", 4)
    unit = torch.nn.functional.normalize(demo.items_IE.double(), dim=1)
    cosines = unit @ unit[7]
    cosines[7] = -2
    order = cosines.argsort(descending=True)[:4].tolist()
    assert [item.key for item in near] == [f"i{row:02}" for row in order]
    assert near[0].score == pytest.approx(float(cosines.max()), abs=1e-5)
    assert len(demo.nearest("i07", 1000)) == N_ITEMS - 1


def test_the_map_holds_a_sample_and_the_items_that_are_asked_for(demo, monkeypatch):
    assert len(demo.points(["i07"])) == N_ITEMS
    monkeypatch.setattr("hub_cards.space_page.MOST_ON_MAP", 5)
    again = Demo.__new__(Demo)
    again._pipeline, again._catalogue, again.items_IE = (
        demo._pipeline, demo._catalogue, demo.items_IE
    )  # fmt: skip
    keys = [point.key for point in again.points(["i07", "i00"])]
    assert keys == ["i00", "i10", "i20", "i29", "i39", "i07"]


def test_the_plane_is_that_of_the_two_main_axes():
    generator = torch.Generator().manual_seed(1)
    items_IE = torch.randn(300, 8, generator=generator) * torch.tensor([9, 5, 1, 1, 1, 1, 1, 1.0])
    before = torch.random.get_rng_state()
    places_I2, share = plane_of(items_IE)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert places_I2.amin(0).tolist() == [0, 0]
    assert places_I2.amax(0).tolist() == [1, 1]
    values = torch.linalg.svdvals(items_IE - items_IE.mean(0)).square()
    assert share == pytest.approx(float(values[:2].sum() / values.sum()), rel=1e-3)
    for axis in (0, 1):
        both = torch.stack([places_I2[:, axis], items_IE[:, axis]])
        assert abs(float(torch.corrcoef(both)[0, 1])) > 0.99
    assert torch.equal(places_I2, plane_of(items_IE)[0])


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (5, 1)])
def test_few_items_and_narrow_embeddings_have_a_plane(shape):
    places_I2, share = plane_of(torch.ones(shape) * torch.arange(shape[0])[:, None])
    assert places_I2.shape == (shape[0], 2)
    assert bool(places_I2.isfinite().all())
    assert 0 <= share <= 1 + 1e-6
