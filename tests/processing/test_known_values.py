import pytest

from modeling_ftmamba.processing_ftmamba import FTMambaFeatureExtractor


@pytest.fixture
def extractor():
    extractor = FTMambaFeatureExtractor(
        user_columns=[
            {"name": "age", "kind": "numeric"},
            {"name": "job", "kind": "categorical", "min_count": 2},
            {"name": "likes", "kind": "categories"},
        ],
        item_columns=[{"name": "genre", "kind": "categorical"}],
    )
    users = {
        "age": [20.0, 30.0, 40.0, 50.0, 60.0],
        "job": ["spy", "nurse", "artist", "nurse", "artist"],
        "likes": [["tea"], ["war", "tea"], None, [], ["tea"]],
    }
    extractor.fit(users, {"genre": ["drama", "war", "war"]})
    return extractor


def test_known_values_are_the_vocabulary_by_frequency_then_text(extractor):
    assert extractor.known_values("user", "job") == ["artist", "nurse"]
    assert extractor.known_values("user", "likes") == ["tea", "war"]
    assert extractor.known_values("item", "genre") == ["war", "drama"]


def test_changing_what_is_returned_changes_no_vocabulary(extractor):
    extractor.known_values("item", "genre").clear()
    assert extractor.known_values("item", "genre") == ["war", "drama"]


@pytest.mark.parametrize(
    ("tower", "name", "message"),
    [
        ("user", "age", "the users have no column of categories 'age'"),
        ("user", "jobs", "did you mean 'job'.; they have: job, likes"),
        ("film", "job", "tower must be one of user, item, got 'film'"),
    ],
)
def test_a_column_without_a_vocabulary_is_refused(extractor, tower, name, message):
    with pytest.raises(ValueError, match=message):
        extractor.known_values(tower, name)
