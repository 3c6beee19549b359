"""What each of two processes runs under `accelerate launch`; see `test_two_ranks.py`."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from ftmamba.recipe import Recipe
from ftmamba.training.run import make_accelerator
from tests.sequences.uneven import LOSSES, gradients

torch.set_num_threads(1)
folder = Path(sys.argv[1])
accelerator = make_accelerator(Recipe(output_dir=str(folder)))
facts = {
    f"{loss}/{name}": tensor
    for loss in LOSSES
    for name, tensor in gradients(folder, loss, batch_size=8, accelerator=accelerator).items()
}
save_file(facts, folder / f"rank-{accelerator.process_index}.safetensors")
accelerator.end_training()
