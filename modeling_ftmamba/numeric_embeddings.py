"""Embeddings of numbers: linear (FT-Transformer), piecewise linear and periodic.

Shapes: B batch, P numeric columns, T bins, F frequencies, D hidden. A missing value (NaN) never
arrives here: the tokenizer puts 0, the mean, in its place.
"""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_ftmamba import Column
from .configuration_ftmamba import FTMambaTowerConfig


def init_uniform(parameter: Tensor, fan: int) -> None:
    """Draw from +-1 / sqrt(fan) (Gorishniy et al. 2021, appendix)."""
    init.uniform_(parameter, -(fan**-0.5), fan**-0.5)


def init_vector(parameter: Tensor, initializer_range: float) -> None:
    """Draw a token, or rows of tokens, as `init_uniform` does or, if given, from N(0, range^2)."""
    if initializer_range:
        init.normal_(parameter, std=initializer_range)
    else:
        init_uniform(parameter, parameter.shape[-1])


def linear_of_each_column(x_BPT: Tensor, weight_PTD: Tensor) -> Tensor:
    """Multiply column p's components by its own matrix; return (B, P, D)."""
    # Not einsum, whose gradient of the weight is transposed in memory, which DDP has to copy.
    return torch.bmm(x_BPT.transpose(0, 1), weight_PTD).transpose(0, 1)


class LinearEmbedding(nn.Module):
    """x_j w_j + b_j (FT-Mamba, section 3; FT-Transformer, equation 1)."""

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(len(columns), config.hidden_size))
        self.bias = nn.Parameter(torch.empty(len(columns), config.hidden_size))

    def reset_parameters(self) -> None:
        """Draw weights and biases."""
        init_uniform(self.weight, self.weight.shape[-1])
        init_uniform(self.bias, self.bias.shape[-1])

    def forward(self, x_BP: Tensor) -> Tensor:
        """Return the tokens (B, P, D)."""
        return x_BP[..., None] * self.weight + self.bias


class PiecewiseLinearEmbedding(nn.Module):
    """PLE, then a linear map of its own for each column (Gorishniy et al. 2022, section 3.2).

    Component t of a value is clamp((x - b_{t-1}) / (b_t - b_{t-1}), 0, 1); the first is not
    clamped below, the last not above. A column without fitted edges has one bin from 0 to 1,
    which leaves x as it is.
    """

    start: Tensor
    slope: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.edges = [column.edges or (0.0, 1.0) for column in columns]
        shape = (len(columns), max(len(edges) for edges in self.edges) - 1)
        for name in ("start", "slope", "lowest", "highest"):
            self.register_buffer(name, torch.empty(shape))
        self.weight = nn.Parameter(torch.empty(*shape, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(len(columns), config.hidden_size))

    def reset_parameters(self) -> None:
        """Draw weights and biases, and write the bins of the config into the buffers."""
        init_uniform(self.weight, self.weight.shape[-1])
        init_uniform(self.bias, self.bias.shape[-1])
        start, slope, lowest, highest = (
            torch.zeros(self.start.shape, dtype=torch.float64) for _ in range(4)
        )
        for row, edges in enumerate(self.edges):
            edge_T = torch.tensor(edges, dtype=torch.float64)
            n_bins = len(edges) - 1
            start[row, :n_bins] = edge_T[:-1]
            slope[row, :n_bins] = 1 / (edge_T[1:] - edge_T[:-1])
            highest[row, :n_bins] = 1.0
            lowest[row, 0] = -math.inf
            highest[row, n_bins - 1] = math.inf
        init.copy_(self.start, start)
        init.copy_(self.slope, slope)
        init.copy_(self.lowest, lowest)
        init.copy_(self.highest, highest)

    def forward(self, x_BP: Tensor) -> Tensor:
        """Return the tokens (B, P, D)."""
        steps_BPT = (x_BP[..., None] - self.start) * self.slope
        steps_BPT = torch.minimum(torch.maximum(steps_BPT, self.lowest), self.highest)
        return linear_of_each_column(steps_BPT, self.weight) + self.bias


class PeriodicEmbedding(nn.Module):
    """PLR: ReLU(Linear([cos 2 pi c x, sin 2 pi c x])) (Gorishniy et al. 2022, section 3.3)."""

    def __init__(self, columns: list[Column], config: FTMambaTowerConfig) -> None:
        super().__init__()
        self.frequency_scale = config.frequency_scale
        shape = (len(columns), config.n_frequencies)
        self.frequency = nn.Parameter(torch.empty(shape))
        self.weight = nn.Parameter(torch.empty(shape[0], 2 * shape[1], config.hidden_size))
        self.bias = nn.Parameter(torch.empty(len(columns), config.hidden_size))

    def reset_parameters(self) -> None:
        """Draw frequencies from N(0, sigma^2), weights and biases."""
        init.normal_(self.frequency, std=self.frequency_scale)
        init_uniform(self.weight, self.weight.shape[1])
        init_uniform(self.bias, self.weight.shape[1])

    def forward(self, x_BP: Tensor) -> Tensor:
        """Return the tokens (B, P, D)."""
        angle_BPF = 2 * math.pi * self.frequency * x_BP[..., None]
        waves_BPW = torch.cat([torch.cos(angle_BPF), torch.sin(angle_BPF)], -1)
        return torch.relu(linear_of_each_column(waves_BPW, self.weight) + self.bias)


NUMERIC_EMBEDDING_CLASSES = {
    "linear": LinearEmbedding,
    "ple": PiecewiseLinearEmbedding,
    "periodic": PeriodicEmbedding,
}
