"""What a mixer keeps of the tokens behind it, and how more tokens carry it on.

The state is exact: read in any number of parts, a sequence gives what it gives in one. A token past
the end of its row has a step of 0, which neither decays the state nor adds to it.

Shapes: B batch, T tokens of this part, X convolved channels, K kernel width, E inner channels, N
numbers of state a channel, W decay rates a channel (N, or 1 for all of them), O window (K - 1 + T),
J tokens kept for the convolution (K - 1).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MixerState(NamedTuple):
    """The state of one mixer.

    Attributes:
        conv: the newest inputs of the convolution (B, X, K - 1), oldest first.
        scan: state of the scan (B, E, N).
    """

    conv: Tensor
    scan: Tensor


class Part(NamedTuple):
    """What is known of the tokens of one part, beside the tokens.

    Attributes:
        lengths: tokens of each row (B,); None means all.
        gaps: see `MambaMixer.steps` (B, T), or None.
    """

    lengths: Tensor | None = None
    gaps: Tensor | None = None


def carry_conv_one(x_BX: Tensor, conv1d: nn.Conv1d, kept_BXJ: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `carry_conv` does for one token of every row, (B, X), with few and small steps."""
    window_BXK = torch.cat([kept_BXJ.to(x_BX.dtype), x_BX[..., None]], 2)
    inputs, taps = window_BXK.unbind(2), conv1d.weight[:, 0].unbind(1)
    total_BX = inputs[-1] * taps[-1]
    for input_BX, tap_X in zip(inputs[:-1], taps[:-1], strict=True):
        total_BX.addcmul_(input_BX, tap_X)
    if conv1d.bias is not None:
        total_BX += conv1d.bias
    return F.silu(total_BX, inplace=True), window_BXK[..., 1:]


def carry_conv(
    x_BTX: Tensor, conv1d: nn.Conv1d, kept_BXJ: Tensor, lengths_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Continue a causal convolution with SiLU.

    Returns:
        The outputs (B, T, X), and the newest inputs of each row (B, X, K - 1).
    """
    n_tokens, n_kept = x_BTX.shape[1], kept_BXJ.shape[2]
    window_BXO = torch.cat([kept_BXJ.to(x_BTX.dtype), x_BTX.transpose(1, 2)], 2)
    taps_XK = conv1d.weight[:, 0]
    total_BXT = window_BXO[..., n_kept:] * taps_XK[:, -1:]
    for tap in range(n_kept):
        total_BXT.addcmul_(window_BXO[..., tap : tap + n_tokens], taps_XK[:, tap, None])
    if conv1d.bias is not None:
        total_BXT += conv1d.bias[:, None]
    y_BTX = F.silu(total_BXT, inplace=True).transpose(1, 2)
    if lengths_B is None:
        return y_BTX, window_BXO[..., n_tokens:]
    newest_BJ = lengths_B[:, None] + torch.arange(n_kept, device=lengths_B.device)
    newest_BXJ = newest_BJ[:, None].expand(-1, window_BXO.shape[1], -1)
    return y_BTX, window_BXO.gather(2, newest_BXJ)


def carry_scan(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    state_BEN: Tensor,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Continue a selective scan, in the state's type; no gradient passes.

    Args:
        inputs: u and dt (B, T, E), A (E, W), B and C (B, T, N); see `scan_reference`.
        state_BEN: ahead of the first token.
        lengths_B: tokens of each row, None for all.

    Returns:
        y (B, T, E) and the state (B, E, N) after the last token of each row.
    """
    u_BTE, dt_BTE, A_EW, B_BTN, C_BTN = (x.to(state_BEN.dtype) for x in inputs)
    n_tokens = u_BTE.shape[1]
    if lengths_B is not None:
        own_BT = torch.arange(n_tokens, device=dt_BTE.device) < lengths_B[:, None]
        dt_BTE = dt_BTE * own_BT[..., None]
    decay_BTEW = (dt_BTE[..., None] * A_EW).exp_()
    state_BTEN = (dt_BTE * u_BTE)[..., None] * B_BTN[:, :, None]
    for t in range(n_tokens):
        state_BEN = state_BTEN[:, t].addcmul_(decay_BTEW[:, t], state_BEN)
    y_BTE = torch.matmul(state_BTEN, C_BTN[..., None])[..., 0]
    return y_BTE.to(inputs[0].dtype), state_BEN


def carry_scan_one(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], state_BEN: Tensor
) -> tuple[Tensor, Tensor]:
    """Do what `carry_scan` does for one token of every row: u and dt (B, E), B and C (B, N)."""
    u_BE, dt_BE, A_EW, B_BN, C_BN = (x.to(state_BEN.dtype) for x in inputs)
    decay_BEW = (dt_BE[..., None] * A_EW).exp_()
    whole = decay_BEW.shape == state_BEN.shape
    state_BEN = decay_BEW.mul_(state_BEN) if whole else decay_BEW * state_BEN
    state_BEN.addcmul_((dt_BE * u_BE)[..., None], B_BN[:, None])
    y_BE = torch.bmm(C_BN[:, None], state_BEN.mT)[:, 0]
    return y_BE.to(inputs[0].dtype), state_BEN
