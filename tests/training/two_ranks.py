"""What each of two processes runs under `accelerate launch`; see `test_two_ranks.py`."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from toy import OBJECTIVES, encoded, encoded_sequences, gradients, model, training_recipe

from ftmamba.recipe import Recipe
from ftmamba.training import fit
from ftmamba.training.run import make_accelerator

torch.set_num_threads(1)
folder = Path(sys.argv[1])
accelerator = make_accelerator(Recipe(output_dir=str(folder)))
with accelerator.main_process_first():
    data = encoded(folder / "data")
    for with_popularity in (False, True):
        encoded_sequences(folder / "data", with_popularity=with_popularity)
facts = {"world_size": torch.tensor(accelerator.num_processes)}
for loss in OBJECTIVES:
    found = gradients(folder, loss, n_ranks=2, accelerator=accelerator)
    facts |= {f"{loss}/{name}": tensor for name, tensor in found.items()}

recipe = training_recipe(batch_size=16, num_epochs=2, checkpointing_steps="epoch")
straight = model(data, token_dropout=0.2)
fit(
    straight, data, recipe, accelerator,
    validate=lambda _: float(accelerator.process_index), output_dir=folder / "run", seed=5,
)  # fmt: skip
resumed = model(data, token_dropout=0.2)
first = sorted((folder / "run" / "checkpoints").iterdir())[0]
again = replace(recipe, resume_from_checkpoint=str(first))
fit(
    resumed, data, again, accelerator,
    validate=lambda _: float(accelerator.process_index), output_dir=folder / "again", seed=5,
)  # fmt: skip
for name, tensors in (("straight", straight), ("resumed", resumed)):
    facts |= {f"{name}/{key}": tensor for key, tensor in tensors.state_dict().items()}
save_file(facts, folder / f"rank-{accelerator.process_index}.safetensors")
accelerator.end_training()
