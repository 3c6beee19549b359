"""Other packages' towers of Mamba layers over given tokens, and an MLP; each as it ships.

Every function builds 4 layers or so many as asked, and returns a module from tokens (B, L, D) to
(B, D). What is not installed raises ImportError, which says how to get it.

Shapes: B batch, L tokens, D hidden.
"""

import importlib
import math
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers import MambaConfig, MambaModel
from transformers.utils import logging


class LastToken(nn.Module):
    """The last token of what a stack of layers returns."""

    def __init__(self, stack: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.stack = stack
        self.norm = norm or nn.Identity()

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the embedding (B, D)."""
        embedding_BD: Tensor = self.norm(self.stack(hidden_BLD)[:, -1])
        return embedding_BD


class _TransformersStack(nn.Module):
    def __init__(self, model: MambaModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        output = self.model(inputs_embeds=hidden_BLD, use_cache=False)
        tokens_BLD: Tensor = output.last_hidden_state
        return tokens_BLD


def transformers_mamba(size: int, *, n_layers: int, state_size: int) -> nn.Module:
    """Build transformers' `MambaModel`; without mamba-ssm's kernels it runs its torch path."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    config = MambaConfig(
        hidden_size=size,
        num_hidden_layers=n_layers,
        state_size=state_size,
        vocab_size=1,
        expand=2,
        time_step_rank=math.ceil(size / 16),
        use_cache=False,
        use_mambapy=False,
    )
    return LastToken(_TransformersStack(MambaModel(config)))


def mambapy_mamba(size: int, *, n_layers: int, state_size: int) -> nn.Module:
    """Build mambapy's tower, with its parallel scan."""
    module = _module("mambapy.mamba", "pip install mambapy")
    config = module.MambaConfig(d_model=size, n_layers=n_layers, d_state=state_size)
    return LastToken(module.Mamba(config), nn.RMSNorm(size))


def deeptab_mamba(size: int, *, n_layers: int, state_size: int) -> nn.Module:
    """Build DeepTab's own torch blocks; only the file of the block and what it imports is loaded.

    The package itself imports lightning and more when it is imported, so its place is taken.
    """
    remedy = "pip install --no-deps deeptab; pip install scikit-learn"
    _take_the_place_of("deeptab", remedy)
    module = _module("deeptab.nn.blocks.mamba", remedy)
    config = SimpleNamespace(
        d_model=size,
        n_layers=n_layers,
        d_state=state_size,
        expand_factor=2,
        bias=False,
        conv_bias=True,
        norm="RMSNorm",
    )
    return LastToken(module.Mamba(config), nn.RMSNorm(size))


def mamba_ssm_mamba(size: int, *, n_layers: int, state_size: int) -> nn.Module:
    """Build pre-norm layers of `mamba_ssm.Mamba`, which needs a GPU."""
    module = _module("mamba_ssm", "pip install 'mamba-ssm>=2.2' on a machine with CUDA")
    layers = (
        Residual(nn.RMSNorm(size), module.Mamba(size, d_state=state_size)) for _ in range(n_layers)
    )
    return LastToken(nn.Sequential(*layers), nn.RMSNorm(size))


class Residual(nn.Module):
    """x + f(norm(x))."""

    def __init__(self, norm: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = norm, inner

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        mixed: Tensor = self.inner(self.norm(x))
        return x + mixed


class MLPTower(nn.Module):
    """Residual MLP layers on the mean of the tokens, with a Mamba layer's parameters each."""

    def __init__(self, size: int, *, n_layers: int, state_size: int) -> None:
        super().__init__()
        inner = mamba_layer_parameters(size, state_size) // (2 * size)
        self.layers = nn.Sequential(
            *(
                Residual(
                    nn.LayerNorm(size),
                    nn.Sequential(nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, size)),
                )
                for _ in range(n_layers)
            )
        )
        self.norm = nn.LayerNorm(size)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the embedding (B, D)."""
        embedding_BD: Tensor = self.norm(self.layers(hidden_BLD.mean(1)))
        return embedding_BD


def mamba_layer_parameters(size: int, state_size: int, conv_kernel: int = 4) -> int:
    """Count the parameters of a Mamba mixer with expand 2."""
    inner, rank = 2 * size, math.ceil(size / 16)
    linears = 3 * size * inner + inner * (rank + 2 * state_size) + rank * inner
    return linears + inner * (conv_kernel + state_size + 3)


def _module(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed here ({error}); {remedy}") from error


def _take_the_place_of(package: str, remedy: str) -> None:
    """Put an empty package where the real one would be, so that its submodules import alone."""
    if package in sys.modules:
        return
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{package} is not installed here; {remedy}")
    stand_in = ModuleType(package)
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = stand_in
