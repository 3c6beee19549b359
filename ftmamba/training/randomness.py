"""Randomness as a function of where training stands, not of how it got there."""

import numpy as np
import torch


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Seed torch for one optimizer step.

    Dropout is then a function of (seed, step, rank): a resumed run repeats it to the bit, and
    nothing that draws numbers in between, such as a validation, can change it.
    """
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))
