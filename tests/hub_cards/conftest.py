"""Facts for a card, small and made up."""

import numpy as np
import pytest

from ftmamba.results import Cost
from hub_cards.facts import (
    ColumnFacts,
    DataFacts,
    Figure,
    GroupRow,
    ModelCardFacts,
    ResultRow,
    UserGroups,
)
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig


@pytest.fixture
def facts():
    warm = {"NDCG@10": Figure(np.float64(0.2231), 0.2, 0.25), "HR@10": Figure(np.float32(0.5))}
    cold = {"NDCG@10": Figure(0.3902, 0.35, 0.43), "HR@10": Figure(0.75, 0.6, 0.9)}
    level = {"NDCG@10": Figure(0.22, 0.19, 0.26), "HR@10": Figure(0.5, 0.4, 0.6)}
    return ModelCardFacts(
        name="FT-Mamba on films: a test",
        repo="somebody/films",
        revision="0123abc",
        data=DataFacts(
            "Tiny Films",
            12,
            1_682,
            60_000,
            parts={"train": 50_000, "validation": 10_000, "test": 9},
            period=("1997-09-20", "1998-04-22"),
            licence="Made up; do as you like",
        ),
        config=FTMambaConfig(hidden_size=16, num_hidden_layers=2, projection_size=8),
        n_parameters=12345,
        options={"loss": "in_batch", "learning_rate": 0.001},
        best_epoch=3,
        seeds={"run": 7, "split": 1, "bootstrap": 0},
        cost=Cost(61.4, "x86_64 CPU, 2 cores", 1, 812_000_000, 0.00123, 0.4, "FRA"),
        versions={"torch": "2.13.0"},
        curves="learning_curves.png",
        user_key="user_id",
        item_key="item_id",
        user_columns=(
            ColumnFacts({"name": "age", "kind": "numeric"}, 0.125, 61, (19.0, 55.0)),
            ColumnFacts({"name": "user_id", "kind": "categorical", "vocabulary_size": 15}, 0.0, 12),
        ),
        item_columns=(
            ColumnFacts(
                {
                    "name": "genres|tags",
                    "kind": "categories",
                    "vocabulary_size": 9,
                    "max_length": 3,
                },
                0.0001,
                6,
            ),
            ColumnFacts({"name": "popularity_7d", "kind": "numeric", "popularity_days": 7}),
        ),
        example_record={"age": 31, "occupation": "doctor's"},
        split="global time cut at 90 %.",
        protocol="full ranking of 20 items, seen items masked",
        metrics=("NDCG@10", "HR@10"),
        results=(
            ResultRow("FT-Mamba", warm, seconds=61.4),
            ResultRow(
                "popularity | 14 days",
                cold,
                Figure(-0.167, -0.2, -0.1),
                seconds=0.02,
                note="popularity-14d",
            ),
            ResultRow("EASE", level, Figure(0.003, -0.01, 0.02), seconds=7300, note="EASE(1000)"),
        ),
        parts={"Cold users": (ResultRow("FT-Mamba", cold),)},
        groups=(
            UserGroups(
                "occupation",
                "NDCG@10",
                (
                    GroupRow("student", 20, Figure(0.25, 0.2, 0.3), Figure(0.2, 0.1, 0.3)),
                    GroupRow("doctor", 7, Figure(0.1, 0.05, 0.15), Figure(0.2, 0.1, 0.3)),
                ),
                "EASE",
            ),
        ),
        limits=("Ratings are from 1998.",),
        code={"modeling_ftmamba.py": "ab" * 32, "pipeline_ftmamba.py": "cd" * 32},
    )
