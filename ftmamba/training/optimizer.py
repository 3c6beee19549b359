"""AdamW, its learning rate and the randomness of a step, each a function of the step alone."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from ftmamba.recipe import TrainingRecipe

WITHOUT_DECAY = ("bias", "dt_bias", "A_log", "D", "gap_weight", "log_temperature", "repeat_bias")


def make_optimizer(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.AdamW:
    """Build AdamW over the parameters that are trained."""
    groups = decay_groups(model.named_parameters())
    decays = {
        "decayed": recipe.weight_decay,
        "tables": recipe.embedding_weight_decay,
        "undecayed": 0.0,
    }
    return torch.optim.AdamW(
        [
            {"params": list(parameters.values()), "weight_decay": decays[kind]}
            for kind, parameters in groups.items()
            if parameters
        ],
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        fused=True,
    )


def decay_groups(named: Iterable[tuple[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Sort trained parameters by name into `decayed`, `tables` and `undecayed`.

    Not decayed: norms, biases, the temperature, `A_log` and `D` (mamba-ssm), and the tokenizer
    (Gorishniy et al. 2021). The tokenizer's embedding tables are `tables`: with many rare values
    they can want a decay of their own.
    """
    groups: dict[str, dict[str, Tensor]] = {"decayed": {}, "tables": {}, "undecayed": {}}
    for name, parameter in named:
        if parameter.requires_grad:
            groups[_kind(name)][name] = parameter
    return groups


def _kind(name: str) -> str:
    parts = name.split(".")
    if "tokenizer" in parts:
        is_table = parts[-2] == "table" or "tables" in parts
        return "tables" if is_table else "undecayed"
    is_norm = any(part == "norm" or part.endswith("_norm") for part in parts)
    return "undecayed" if is_norm or parts[-1] in WITHOUT_DECAY else "decayed"


def learning_rate_at(step: int, n_steps: int, recipe: TrainingRecipe) -> float:
    """Return the learning rate of a step: linear warm-up, then the schedule down to zero.

    Args:
        step: optimizer steps taken before this one.
        n_steps: optimizer steps of the whole schedule.
        recipe: the highest rate, the warm-up's share and the schedule.
    """
    n_warmup = round(n_steps * recipe.warmup_fraction)
    if step < n_warmup:
        return recipe.learning_rate * (step + 1) / n_warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    progress = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
    if recipe.schedule == "linear":
        return recipe.learning_rate * (1 - progress)
    return recipe.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Seed torch for one optimizer step.

    Dropout is then a function of (seed, step, rank): a resumed run repeats it to the bit, and
    nothing that draws numbers in between, such as a validation, can change it.
    """
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))
