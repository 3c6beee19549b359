"""Facts for a card, small and made up."""

import numpy as np
import pytest

from hub_cards import DataFacts, Figure, ModelCardFacts, ModelFacts, ResultRow


@pytest.fixture
def facts() -> ModelCardFacts:
    warm = {"NDCG@10": Figure(np.float64(0.2231), 0.2, 0.25), "HR@10": Figure(np.float32(0.5))}
    cold = {"NDCG@10": Figure(0.3902, 0.35, 0.43), "HR@10": Figure(0.75, 0.6, 0.9)}
    return ModelCardFacts(
        name="FT-Mamba on films: a test",
        repo="somebody/films",
        revision="0123abc",
        data=DataFacts("Tiny Films", 12, 20, 60, licence="Made up; do as you like."),
        model=ModelFacts("mamba", 12345, 16, 2, "in_batch", 7, 61.4, "2 CPU cores"),
        user_key="user_id",
        item_key="item_id",
        user_columns=(
            {"name": "age", "kind": "numeric", "edges": [0.0, 1.0]},
            {"name": "user_id", "kind": "categorical", "vocabulary_size": 15},
        ),
        item_columns=(
            {"name": "genres|tags", "kind": "categories", "vocabulary_size": 9, "max_length": 3},
            {"name": "popularity_7d", "kind": "numeric", "popularity_days": 7},
        ),
        example_record={"age": 31, "occupation": "doctor's"},
        split="global time cut at 90 %.",
        protocol="full ranking of 20 items, seen items masked.",
        metrics=("NDCG@10", "HR@10"),
        results=(ResultRow("FT-Mamba", warm), ResultRow("popularity | 14 days", cold)),
        groups={"Cold users": (ResultRow("FT-Mamba", cold),)},
        limits=("Ratings are from 1998.",),
    )
