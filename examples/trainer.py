"""Train the two towers with `transformers.Trainer` on `datasets`, save them, and recommend.

    python examples/trainer.py ratings.csv films.csv runs/trainer

`ratings.csv` has the columns user_id and item_id, `films.csv` has item_id, title and genre. The
model's own loss is the softmax over the items of a batch; `ftmamba train` has others, histories,
baselines and an evaluation.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments, default_data_collator

from ftmamba import Recommender
from ftmamba.checkpoint import Checkpoint, save_checkpoint
from ftmamba.data.fitting import fit_extractor
from ftmamba.recipe import load_preset
from ftmamba.table_embedding import embed_catalogue
from modeling_ftmamba import FTMambaConfig, FTMambaFeatureExtractor, FTMambaTwoTowerModel


def train(ratings: Dataset, films: Dataset, folder: str | Path, **options: Any) -> Recommender:
    """Train on pairs of users and films; `options` are those of `TrainingArguments`."""
    extractor = FTMambaFeatureExtractor(
        user_columns=[{"name": "user_id", "kind": "categorical"}],
        item_columns=[
            {"name": "item_id", "kind": "categorical"},
            {"name": "genre", "kind": "categorical"},
        ],
    )
    extractor = fit_extractor(extractor, users=ratings[:], items=films[:])
    encoded_films = extractor(items=films[:])
    row_of = {key: row for row, key in enumerate(films["item_id"])}

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        users = extractor(users={"user_id": batch["user_id"]})
        return {**users, "film": [row_of[key] for key in batch["item_id"]]}

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch's films, each once; the label of a user is the row of their film."""
        batch = default_data_collator(rows)
        taken, batch["labels"] = torch.unique(batch.pop("film"), return_inverse=True)
        return batch | {name: tensor[taken] for name, tensor in encoded_films.items()}

    architecture = load_preset("ft-mamba-small")
    config = FTMambaConfig.from_columns(
        extractor.user_columns, extractor.item_columns, **architecture
    )
    model = FTMambaTwoTowerModel(config)
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), remove_unused_columns=False, report_to=[], **options),
        train_dataset=ratings.map(encode, batched=True, remove_columns=ratings.column_names),
        data_collator=collate,
        processing_class=extractor,
    )
    trainer.train()
    catalogue = embed_catalogue(
        model,
        encoded_films,
        keys=list(map(str, films["item_id"])),
        titles=list(films["title"]),
    )
    save_checkpoint(folder, Checkpoint(model, extractor, catalogue))
    return Recommender.from_pretrained(folder)


if __name__ == "__main__":
    ratings_file, films_file, output = sys.argv[1:]
    recommender = train(
        Dataset.from_csv(ratings_file),
        Dataset.from_csv(films_file),
        output,
        num_train_epochs=20,
        per_device_train_batch_size=256,
        learning_rate=3e-3,
    )
    for one in recommender.recommend(record={"user_id": 42}):
        print(f"{one.score:6.2f}  {one.title}")
