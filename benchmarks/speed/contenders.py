"""Every tower that is timed, by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from modeling_ftmamba.configuration_ftmamba import MIXERS

from .ft_transformer import (
    FTTransformer,
    FusedFTTransformer,
    OneDNNLinear,
    attention_by_products,
)
from .rivals import (
    MLPTower,
    deeptab_mamba,
    mamba_ssm_mamba,
    mambapy_mamba,
    transformers_mamba,
)
from .targets import STATE_SIZE
from .towers_under_test import own_tower

Build = Callable[[int, int], nn.Module]
"""Builds a tower of a width and a number of layers."""

OWN, FT_TRANSFORMER, MAMBA, MLP = "own", "FT-Transformer", "other Mamba", "MLP"
LONGEST_QUADRATIC = 2000
"""Tokens. The backward of what reads `decay[:, t]` fills a gradient of all tokens for each."""
GPU_FT_TRANSFORMERS = ("ftt 32", "ftt 32 fused", "ftt 64", "ftt 64 fused")
"""On a GPU torch's own linear maps and SDPA are the fastest."""


@dataclass(frozen=True)
class Contender:
    """A tower to time.

    Attributes:
        name: short, for the JSON files.
        label: what it is, for the tables.
        group: `own`, `FT-Transformer`, `other Mamba` or `MLP`.
        build: makes it; raises ImportError or RuntimeError where it cannot run.
        checked: whether float64 of the same weights is the truth for it: what is not ours is
            taken at its word.
        slow: whether a part of it is tried first, to see how long it takes.
        most_tokens: of a record, by mode, beyond which it is not run.
    """

    name: str
    label: str
    group: str
    build: Build
    checked: bool = True
    slow: bool = False
    most_tokens: Mapping[str, int] = field(default_factory=dict)

    def why_not(self, mode: str, length: int) -> str:
        """Return why it is not run on records of that length, or nothing."""
        if length <= self.most_tokens.get(mode, length):
            return ""
        return f"not run to {mode} on {length:,} tokens: its cost is quadratic in their number"


def own_contenders(scans: Iterable[str]) -> list[Contender]:
    """Return the project's towers: Mamba with each scan, and the other mixers."""
    towers = [
        Contender(
            "mamba" if scan == "auto" else f"mamba, {scan}",
            "FT-Mamba" if scan == "auto" else f"FT-Mamba, {scan} scan",
            OWN,
            partial(_own, "mamba", scan=scan),
            slow=scan != "auto",
        )
        for scan in scans
    ]
    if "ssd" in MIXERS:
        towers.append(Contender("ssd", "FT-Mamba, ssd mixer", OWN, partial(_own, "ssd")))
    label = "FT-Transformer, this project's"
    return [*towers, Contender("attention", label, FT_TRANSFORMER, partial(_own, "attention"))]


def ft_transformers(head_sizes: Iterable[int]) -> list[Contender]:
    """Return the variants of the FT-Transformer: head sizes, linears and kinds of attention."""
    eight = partial(_ft_transformer, n_heads=8)
    variants = [Contender("ftt 8 heads", "FT-Transformer, 8 heads", FT_TRANSFORMER, eight)]
    for head in head_sizes:
        build = partial(_ft_transformer, head_size=head)
        onednn = partial(build, linear=OneDNNLinear)
        heads = f"FT-Transformer, heads of {head}"
        variants += [
            Contender(f"ftt {head}", heads, FT_TRANSFORMER, build),
            Contender(f"ftt {head} onednn", f"{heads}, oneDNN linears", FT_TRANSFORMER, onednn),
            Contender(
                f"ftt {head} products",
                f"{heads}, oneDNN linears, batched products",
                FT_TRANSFORMER,
                partial(onednn, attention=attention_by_products),
                most_tokens={"train": 1000, "infer": 1000},
            ),
            Contender(
                f"ftt {head} fused",
                f"{heads}, torch's fused encoder layer",
                FT_TRANSFORMER,
                partial(_fused_ft_transformer, head_size=head),
            ),
        ]
    return variants


def other_contenders() -> list[Contender]:
    """Return the other packages' Mamba towers and the MLP."""
    mambas = (
        ("transformers", "transformers' MambaModel, torch path", transformers_mamba, True),
        ("mambapy", "mambapy, parallel scan", mambapy_mamba, False),
        ("deeptab", "DeepTab's Mamba block", deeptab_mamba, True),
        ("mamba_ssm", "mamba-ssm's Mamba", mamba_ssm_mamba, False),
    )
    contenders = [
        Contender(
            name,
            label,
            MAMBA,
            partial(_other, make),
            checked=False,
            slow=True,
            most_tokens={"train": LONGEST_QUADRATIC} if quadratic else {},
        )
        for name, label, make, quadratic in mambas
    ]
    mlp = Contender("mlp", "residual MLP on the mean token", MLP, partial(_other, MLPTower))
    return [*contenders, mlp]


def cpu_contenders() -> dict[str, Contender]:
    """Return what is timed on a CPU."""
    found = [
        *own_contenders(["auto", "sequential"]),
        *ft_transformers([32]),
        *(one for one in other_contenders() if one.name != "mamba_ssm"),
    ]
    return {contender.name: contender for contender in found}


def gpu_contenders() -> dict[str, Contender]:
    """Return what is timed on a GPU."""
    found = [
        *own_contenders(["auto", "sequential"]),
        *(one for one in ft_transformers([32, 64]) if one.name in GPU_FT_TRANSFORMERS),
        *(one for one in other_contenders() if one.name in ("transformers", "mamba_ssm")),
    ]
    return {contender.name: contender for contender in found}


def _own(mixer: str, size: int, n_layers: int, *, scan: str = "auto") -> nn.Module:
    return own_tower(mixer, size, n_layers=n_layers, state_size=STATE_SIZE, scan=scan)


def _ft_transformer(
    size: int, n_layers: int, *, n_heads: int = 0, head_size: int = 32, **options: object
) -> nn.Module:
    heads = n_heads or max(1, size // head_size)
    return FTTransformer(size, n_layers=n_layers, n_heads=heads, **options)  # type: ignore[arg-type]


def _fused_ft_transformer(size: int, n_layers: int, *, head_size: int) -> nn.Module:
    return FusedFTTransformer(size, n_layers=n_layers, n_heads=max(1, size // head_size))


def _other(make: Callable[..., nn.Module], size: int, n_layers: int) -> nn.Module:
    return make(size, n_layers=n_layers, state_size=STATE_SIZE)
