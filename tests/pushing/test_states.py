"""What a run pushes on its way: its words, and that the end leaves no trace of them."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ftmamba.recipe import recipe_from_dict
from ftmamba.training.checkpoints import Progress
from hub_cards.merge import merge_card
from hub_cards.training_push import describe_step, unfinished_card

GOLDEN = Path(__file__).parents[1] / "hub_cards" / "golden_model_card.md"


@pytest.fixture
def recipe():
    return recipe_from_dict(
        {"hub_model_id": "me/films", "evaluation": {"selection_metric": "HR@5"}}
    )


SCORED = {"epoch": 3, "step": 120, "history": [{"score": 0.25}]}
AMID = {"epoch": 2, "batch": 4, "step": 100, "history": [{"score": 0.1}, {"loss": 9.0}]}


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (SCORED, "step 120, epoch 3: HR@5 0.2500 on validation"),
        (AMID, "step 100, epoch 3: HR@5 0.1000 on validation"),
        ({"epoch": 1, "step": 40, "history": [{"loss": 1.5}]}, "step 40, epoch 1: loss 1.5000"),
        ({"batch": 7, "step": 7}, "step 7, epoch 1"),
    ],
)
def test_a_state_says_where_it_stands_and_how_good_it_is(progress, words):
    assert describe_step(Progress(**progress), "HR@5") == words


def test_the_card_under_way_is_valid_and_says_so(recipe):
    card = unfinished_card(recipe, Progress(**SCORED))
    assert ModelCard(card).data.library_name == "transformers"
    assert "**This model is still being trained.**" in card
    assert "step 120, epoch 3: HR@5 0.2500" in card


def test_a_card_under_way_leaves_a_finished_one_but_its_summary(recipe):
    golden = GOLDEN.read_text(encoding="utf-8")
    merged = merge_card(unfinished_card(recipe, Progress(step=7)), golden)
    assert "still being trained" in merged
    for heading in ("## How to use", "## Results"):
        assert merged.count(heading) == golden.count(heading) == 1
    assert merge_card(golden, merged) == golden
