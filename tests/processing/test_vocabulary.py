import numpy as np

from modeling_ftmamba.configuration_ftmamba import MISSING_ID, UNSEEN_ID, Column
from modeling_ftmamba.encoders import Vocabulary, stable_hash

TEXTS = ["rare", "b", "often", "a", None]
COUNTS = np.array([1, 2, 5, 2, 9])


def known(**options):
    return Vocabulary.fit(TEXTS, COUNTS, Column("x", "categorical", **options)).texts


def test_the_most_frequent_text_comes_first_and_ties_follow_the_alphabet():
    assert known() == ["often", "a", "b", "rare"]


def test_rare_texts_are_left_out():
    assert known(min_count=2) == ["often", "a", "b"]
    assert known(max_vocabulary=2) == ["often", "a"]


def test_a_text_that_occurs_in_two_spellings_is_counted_once():
    both = Vocabulary.fit(["a", "b", "a"], np.array([2, 3, 2]), Column("x", "categorical"))
    assert both.texts == ["a", "b"]


def test_ids_begin_after_the_special_ones():
    vocabulary = Vocabulary(["often", "a"], hash_buckets=0)
    assert vocabulary.ids(["often", "a", None, "", "new"]).tolist() == [3, 4, 1, 1, UNSEEN_ID]
    assert vocabulary.size == 5


def test_unseen_texts_share_the_buckets_after_the_known_ones():
    vocabulary = Vocabulary(["often", "a"], hash_buckets=7)
    words = [f"new {number}" for number in range(200)]
    ids = vocabulary.ids([*words, "often", None])
    assert vocabulary.size == 12
    assert set(ids[:-2].tolist()) == set(range(5, 12))
    assert ids[-2:].tolist() == [3, MISSING_ID]
    assert np.array_equal(ids, vocabulary.ids([*words, "often", None]))


def test_the_hash_never_changes():
    """It decides which row of a saved table a text has: another hash is another model."""
    assert stable_hash("Ärzte") == 11668479475804398235
    assert stable_hash("\ud800") != stable_hash("\ud801")
