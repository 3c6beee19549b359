"""AdamW with the right weight decay for each kind of parameter."""

from collections.abc import Iterable

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
