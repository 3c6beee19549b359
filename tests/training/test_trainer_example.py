"""The example of `transformers.Trainer`: its checkpoints load as ours do."""

import torch
from datasets import Dataset
from transformers import AutoModel, AutoProcessor

from examples.trainer import train


def test_what_transformers_trains_recommends_and_its_checkpoints_load(tmp_path):
    """Of films 0 to 9 people like either the even or the odd ones, as their own number is."""
    pairs = [(user, film) for user in range(20) for film in range(user % 2, 10, 2)]
    withheld = [(user, (user % 2 + 2 * user) % 10) for user in range(20)]
    kept = [pair for pair in pairs if pair not in withheld]
    ratings = Dataset.from_dict({"user_id": [u for u, _ in kept], "item_id": [i for _, i in kept]})
    films = Dataset.from_dict(
        {
            "item_id": list(range(10)),
            "title": [f"Film {film}" for film in range(10)],
            "genre": ["a", "b"] * 5,
        }
    )
    recommender = train(
        ratings, films, tmp_path / "run", num_train_epochs=30, per_device_train_batch_size=16,
        learning_rate=0.01, save_strategy="epoch", save_total_limit=1, logging_strategy="no",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    for user, film in withheld[:4]:
        found = [int(one.item_key) for one in recommender.recommend(record={"user_id": user}, k=5)]
        assert film in found
        assert {one % 2 for one in found} == {user % 2}
    (last,) = (tmp_path / "run").glob("checkpoint-*")
    processor = AutoProcessor.from_pretrained(last, trust_remote_code=True)
    model = AutoModel.from_pretrained(last, trust_remote_code=True).eval()
    records = {"users": {"user_id": 0}, "items": {"item_id": 4, "genre": "a"}}
    with torch.no_grad():
        score = model(**processor(**records)).scores.item()
    expected = recommender.score({"user_id": 0}, "4")
    assert abs(score - expected) < 1e-3
