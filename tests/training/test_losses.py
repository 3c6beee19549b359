"""Losses of positions: equal to their definitions in float64, in memory for a chunk.

The softmax over all items comes last: fused, and equal to the plain one.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ftmamba.training import losses as losses_module
from ftmamba.training.fused_cross_entropy import fused_linear_cross_entropy
from ftmamba.training.losses import (
    Negatives,
    binary_loss,
    full_mse_loss,
    gbce_beta,
    in_batch_loss,
    mean_in_chunks,
    sampled_softmax_loss,
    squared_loss,
)
from ftmamba.training.negatives import NegativeSampler, SeenItems

M, N, D, S = 23, 11, 5, 6


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def case(generator):
    """Queries and items in float64 with gradients, and targets."""
    queries_MD, items_ND = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((M, D), (N, D))
    )
    return queries_MD, items_ND, torch.randint(N, (M,), generator=generator)


@pytest.fixture(name="weights_M")
def _weights_of_positions(generator):
    """Weights of the positions, one of them 0."""
    weights_M = torch.rand(M, generator=generator, dtype=torch.float64)
    weights_M[4] = 0
    return weights_M


@pytest.fixture
def seen(generator):
    """Items that positions have seen, some of them twice; of which their targets are some."""
    items_BT = torch.randint(N, (4, 6), generator=generator)
    items_BT[0, :3] = items_BT[0, 0]
    return SeenItems(items_BT, torch.arange(M) % 4, torch.arange(M) % 7)


def seen_mask(seen, targets_M):
    mask_MN = torch.zeros(M, N, dtype=torch.bool)
    for m in range(M):
        mask_MN[m, seen.items[seen.lists[m], : seen.lengths[m]]] = True
    assert mask_MN[torch.arange(M), targets_M].any()
    return mask_MN


@pytest.fixture(params=["shared", "of each position"])
def rows(request, generator):
    shape = (S,) if request.param == "shared" else (M, S)
    return torch.randint(N, shape, generator=generator)


@pytest.fixture(params=[1, 40, 10**6], ids=["chunks of 1", "chunks of few", "one chunk"])
def numbers_at_once(request, monkeypatch):
    monkeypatch.setattr(losses_module, "NUMBERS_AT_ONCE", request.param)


def assert_same_with_gradients(found, wanted, tensors, **tolerance):
    tolerance = tolerance or {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(found, wanted, **tolerance)
    for one, other in zip(
        torch.autograd.grad(3 * found, tensors),
        torch.autograd.grad(3 * wanted, tensors),
        strict=True,
    ):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, **tolerance)


def softmax_loss(own, others):
    return torch.stack([own, *others]).logsumexp(0) - own


def binary(beta):
    return lambda own, others: (
        (-beta * own.sigmoid().log() - sum((1 - o.sigmoid()).log() for o in others)) / (1 + S)
    )


def squared(own, others):
    return ((own - 1) ** 2 + sum(o**2 for o in others)) / (1 + S)


def definition(case, rows, excluded_MS, loss, log_q=None):
    """Return the mean of a loss, one position and one negative at a time."""
    queries_MD, items_ND, targets_M = case
    found = []
    for m, target in enumerate(targets_M.tolist()):
        own = rows if rows.ndim == 1 else rows[m]
        others = []
        for s, negative in enumerate(own.tolist()):
            if negative != target and not excluded_MS[m, s]:
                logit = queries_MD[m] @ items_ND[negative]
                if log_q is not None:
                    drawn = log_q[s] if log_q.ndim == 1 else log_q[m, s]
                    logit = logit - math.log(S) - drawn
                others.append(logit)
        found.append(loss(queries_MD[m] @ items_ND[target], others))
    return torch.stack(found).mean()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (sampled_softmax_loss, softmax_loss),
        (binary_loss, binary(1.0)),
        (lambda *arguments: binary_loss(*arguments, beta=0.3), binary(0.3)),
        (squared_loss, squared),
    ],
    ids=["sampled_softmax", "bce", "gbce", "mse"],
)
def test_a_loss_is_its_definition_with_its_gradients(
    loss, plain, masked, case, rows, numbers_at_once, generator
):
    excluded_MS = masked & (torch.rand(M, S, generator=generator) < 0.3)
    assert (rows == case[2][:, None]).any()
    assert bool(excluded_MS.any()) == masked
    negatives = Negatives(rows, excluded=(lambda m: excluded_MS[m]) if masked else None)
    wanted = definition(case, rows, excluded_MS, plain)
    assert_same_with_gradients(loss(*case, negatives), wanted, case[:2])


def test_the_sampled_softmax_is_corrected_for_how_often_an_item_is_drawn(
    case, rows, numbers_at_once, generator
):
    log_q_N = (torch.rand(N, generator=generator, dtype=torch.float64) + 0.1).log()
    log_q = log_q_N[rows]
    wanted = definition(case, rows, torch.zeros(M, S), softmax_loss, log_q)
    found = sampled_softmax_loss(*case, Negatives(rows, log_q))
    assert_same_with_gradients(found, wanted, case[:2])


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_in_batch_is_a_softmax_over_the_other_positions_targets(
    case, corrected, masked, numbers_at_once, generator
):
    queries_MD, items_ND, targets_M = case
    log_q_N = torch.randn(N, generator=generator, dtype=torch.float64) * corrected
    seen_MN = masked & (torch.rand(M, N, generator=generator) < 0.3)
    logits_MM = queries_MD @ items_ND[targets_M].T - log_q_N[targets_M]
    excluded_MM = (targets_M[:, None] == targets_M) | seen_MN[:, targets_M]
    excluded_MM.fill_diagonal_(False)
    wanted = F.cross_entropy(logits_MM.masked_fill(excluded_MM, -torch.inf), torch.arange(M))
    distinct_S, counts_S = targets_M.unique(return_counts=True)
    negatives = Negatives(
        distinct_S,
        log_q_N[distinct_S] if corrected else None,
        log_q_N[targets_M] if corrected else None,
        counts_S,
        excluded=lambda m: seen_MN[m][:, distinct_S],
    )
    found = in_batch_loss(queries_MD, items_ND, targets_M, negatives)
    assert_same_with_gradients(found, wanted, (queries_MD, items_ND))


def test_log_q_has_the_sign_that_recovers_the_full_softmax(generator):
    """With a large batch drawn by q, the corrected gradient approaches the full softmax's."""
    n_drawn, positive = 60_000, torch.tensor([2])
    q_N = torch.tensor([0.4, 0.25, 0.12, 0.08, 0.06, 0.04, 0.03, 0.02])
    items_ND = torch.randn(8, 4, generator=generator)
    query = torch.randn(1, 4, generator=generator, requires_grad=True)
    drawn = torch.multinomial(q_N, n_drawn, replacement=True, generator=generator)
    distinct, counts = drawn.unique(return_counts=True)
    (exact,) = torch.autograd.grad(fused_linear_cross_entropy(query, positive, items_ND), query)

    def error(log_q_N):
        # The positive stands once for its whole share of the draws.
        negatives = Negatives(
            distinct, log_q_N[distinct] + math.log(n_drawn), torch.zeros(1), counts
        )
        loss = in_batch_loss(query, items_ND, positive, negatives)
        return (torch.autograd.grad(loss, query)[0] - exact).norm() / exact.norm()

    assert error(q_N.log()) < 0.02
    assert error(-q_N.log()) > 0.15
    assert error(torch.full((8,), -math.log(8))) > 0.05


@pytest.mark.parametrize("kind", ["uniform", "popularity", "mixed"])
def test_many_corrected_negatives_come_to_the_full_softmax(case, kind):
    queries_MD, items_ND = (one.detach().float() for one in case[:2])
    queries_MD.requires_grad_()
    sampler = NegativeSampler(kind, np.arange(1, N + 1) ** 2)
    loss = fused_linear_cross_entropy(queries_MD, case[2], items_ND)
    (exact,) = torch.autograd.grad(loss, queries_MD)

    def error(log_q_N):
        drawn = sampler.draw(np.zeros(1, int), 200_000, step=0)[0]
        negatives = Negatives(drawn, None if log_q_N is None else log_q_N[drawn])
        loss = sampled_softmax_loss(queries_MD, items_ND, case[2], negatives)
        return (torch.autograd.grad(loss, queries_MD)[0] - exact).norm() / exact.norm()

    assert error(sampler.log_q) < 0.02
    assert error(None) > 0.1


def test_beta_is_one_without_calibration_and_the_sampling_rate_with_all_of_it():
    assert gbce_beta(256, 3417, 0.0) == pytest.approx(1)
    assert gbce_beta(256, 3417, 1.0) == pytest.approx(256 / 3416)
    # half way between them
    assert gbce_beta(5, 11, 0.5) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("n_negatives", "t", "message"),
    [(5, 1.5, r"t must be in \[0, 1\], got 1.5"), (11, 0.5, "11 negatives .* draw from 1 to 10")],
)
def test_gbce_refuses_what_it_cannot_calibrate(n_negatives, t, message):
    with pytest.raises(ValueError, match=message):
        gbce_beta(n_negatives, 11, t)


def test_full_mse_over_all_interactions_is_the_objective_of_implicit_als(case, generator):
    users_UD, items_ND, _ = case
    taken_UN = torch.rand(M, N, generator=generator) < 0.4
    taken_UN[:, 0] = True
    user_ids, item_ids = taken_UN.nonzero().unbind(1)
    counts = taken_UN.sum(1)[user_ids]
    loss = full_mse_loss(
        users_UD[user_ids], items_ND, item_ids, user_counts_M=counts, positive_weight=3.0, l2=0.7
    )
    errors_UN = torch.where(taken_UN, 3.0, 1.0) * (taken_UN.double() - users_UD @ items_ND.T) ** 2
    lengths = users_UD.square().sum() + M * items_ND.square().sum(1).mean()
    wanted = (errors_UN.sum() + 0.7 * lengths) / taken_UN.sum()
    assert_same_with_gradients(loss, wanted, (users_UD, items_ND))


LOSSES = {
    "full_softmax": fused_linear_cross_entropy,
    "in_batch": lambda *case: in_batch_loss(
        *case, Negatives(torch.tensor([1, 2]), counts=torch.tensor([1, 3]))
    ),
    "sampled_softmax": lambda *case: sampled_softmax_loss(*case, Negatives(torch.tensor([1, 2]))),
    "gbce": lambda *case: binary_loss(*case, Negatives(torch.tensor([1, 2])), beta=0.5),
    "mse": lambda *case: squared_loss(*case, Negatives(torch.tensor([1, 2]))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_no_position_is_no_loss_and_no_gradient(name):
    queries_MD, items_ND = torch.randn(0, D, requires_grad=True), torch.randn(N, D).requires_grad_()
    targets_M = torch.empty(0, dtype=torch.int64)
    loss = LOSSES[name](queries_MD, items_ND, targets_M) if name != "full_softmax" else (
        fused_linear_cross_entropy(queries_MD, targets_M, items_ND)
    )  # fmt: skip
    loss.backward()
    assert loss.item() == 0
    assert not items_ND.grad.any()


def test_a_mean_in_chunks_takes_gradients_only_where_they_are_wanted():
    rows_MD = torch.randn(7, 3, dtype=torch.float64)
    shared_D = torch.randn(3, dtype=torch.float64, requires_grad=True)
    found = mean_in_chunks(lambda x, w: (x * w).sum(1) ** 2, (rows_MD,), (shared_D,), chunk=3)
    assert_same_with_gradients(found, ((rows_MD * shared_D).sum(1) ** 2).mean(), (shared_D,))


@pytest.mark.parametrize("chunk", [None, 1, 7, 23, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_fused_loss_is_the_plain_one_with_its_gradients(
    case, weights_M, chunk, smoothing, weighted
):
    queries_MD, items_ND, targets_M = case
    plain_M = F.cross_entropy(
        queries_MD @ items_ND.T, targets_M, label_smoothing=smoothing, reduction="none"
    )
    wanted = (plain_M * weights_M if weighted else plain_M).mean()
    options = {"label_smoothing": smoothing, "weights_M": weights_M if weighted else None}
    found = fused_linear_cross_entropy(queries_MD, targets_M, items_ND, chunk=chunk, **options)
    assert_same_with_gradients(found, wanted, (queries_MD, items_ND))


def test_items_may_stand_for_several(case, generator):
    queries_MD, items_ND, targets_M = case
    log_weights_N = torch.randn(N, generator=generator, dtype=torch.float64)
    wanted = F.cross_entropy(queries_MD @ items_ND.T + log_weights_N, targets_M)
    found = fused_linear_cross_entropy(
        queries_MD, targets_M, items_ND, log_weights_I=log_weights_N, chunk=6
    )
    assert_same_with_gradients(found, wanted, (queries_MD, items_ND))


def test_large_logits_do_not_overflow(case):
    queries_MD, items_ND, targets_M = (one.detach() for one in case)
    queries_MD = (queries_MD * 1e4).float().requires_grad_()
    items_ND = items_ND.float().requires_grad_()
    found = fused_linear_cross_entropy(queries_MD, targets_M, items_ND)
    wanted = F.cross_entropy(queries_MD @ items_ND.T, targets_M)
    assert_same_with_gradients(found, wanted, (queries_MD, items_ND), rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_float32_also_under_autocast(case):
    queries_MD, items_ND, targets_M = (one.detach() for one in case)
    halves = [one.bfloat16().requires_grad_() for one in (queries_MD, items_ND)]
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_linear_cross_entropy(halves[0], targets_M, halves[1])
    wanted = F.cross_entropy(halves[0].float() @ halves[1].float().T, targets_M)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert [one.dtype for one in torch.autograd.grad(found, halves)] == [torch.bfloat16] * 2


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_seen_items_are_left_out_and_a_target_stays(case, weights_M, seen, chunk, weighted):
    queries_MD, items_ND, targets_M = case
    excluded_MN = seen_mask(seen, targets_M)
    assert not excluded_MN[seen.lengths == 0].any()
    excluded_MN[torch.arange(M), targets_M] = False
    logits_MN = (queries_MD @ items_ND.T).masked_fill(excluded_MN, -torch.inf)
    plain_M = F.cross_entropy(logits_MN, targets_M, reduction="none")
    weights_M = weights_M if weighted else torch.ones_like(weights_M)
    found = fused_linear_cross_entropy(
        queries_MD, targets_M, items_ND, weights_M=weights_M, seen=seen, chunk=chunk
    )
    assert_same_with_gradients(found, (plain_M * weights_M).mean(), (queries_MD, items_ND))


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("start", [0.0, -2.5])
def test_seen_items_get_a_bias_which_is_learned(case, weights_M, seen, chunk, smoothing, start):
    queries_MD, items_ND, targets_M = case
    bias = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    seen_MN = seen_mask(seen, targets_M)
    logits_MN = queries_MD @ items_ND.T + bias * seen_MN
    plain_M = F.cross_entropy(logits_MN, targets_M, reduction="none", label_smoothing=smoothing)
    options = {"label_smoothing": smoothing, "weights_M": weights_M, "chunk": chunk}
    found = fused_linear_cross_entropy(
        queries_MD, targets_M, items_ND, seen=seen, repeat_bias=bias, **options
    )
    assert_same_with_gradients(found, (plain_M * weights_M).mean(), (queries_MD, items_ND, bias))


def test_windows_without_events_leave_nothing_out(case):
    queries_MD, items_ND, targets_M = case
    nothing = SeenItems(
        torch.empty(4, 0, dtype=torch.int64), targets_M % 4, torch.zeros_like(targets_M)
    )
    assert fused_linear_cross_entropy(
        queries_MD, targets_M, items_ND, seen=nothing
    ) == fused_linear_cross_entropy(queries_MD, targets_M, items_ND)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.3}, {"log_weights_I": -1.0}])
@pytest.mark.parametrize("bias", ["nothing seen", None, -1.5])
@pytest.mark.parametrize("chunk", [None, 128])
def test_products_in_bfloat16_are_right_but_for_rounding(generator, options, bias, chunk):
    queries_MD, items_ND = (
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((400, 16), (300, 16))
    )
    tensors, options = [queries_MD, items_ND], dict(options)
    targets_M = torch.randint(300, (400,), generator=generator)
    if "log_weights_I" in options:
        options["log_weights_I"] = torch.linspace(-1, 1, 300)
    if bias != "nothing seen":
        lists = torch.randint(300, (8, 50), generator=generator)
        options["seen"] = SeenItems(lists, torch.arange(400) // 50, torch.arange(400) % 50)
    if isinstance(bias, float):
        options["repeat_bias"] = torch.tensor([bias], requires_grad=True)
        tensors.append(options["repeat_bias"])
    wanted, found = (
        fused_linear_cross_entropy(
            queries_MD, targets_M, items_ND, products_in=kind, chunk=size, **options
        )
        for kind, size in ((None, None), (torch.bfloat16, chunk))
    )
    assert found.dtype == torch.float32
    assert found != wanted
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=0)
    gradients = (torch.autograd.grad(loss, tensors) for loss in (found, wanted))
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()


def test_without_gradients_the_loss_is_the_same_and_nothing_is_kept(case):
    queries_MD, items_ND, targets_M = case
    with_gradient = fused_linear_cross_entropy(queries_MD, targets_M, items_ND)
    with torch.no_grad():
        without = fused_linear_cross_entropy(queries_MD, targets_M, items_ND)
    assert without.grad_fn is None
    assert without.item() == with_gradient.item()


def test_no_tensor_is_as_large_as_all_logits():
    """Seen through the allocations that torch's profiler counts."""
    queries_MD = torch.randn(4000, 8, requires_grad=True)
    items_ND = torch.randn(1000, 8, requires_grad=True)
    targets_M = torch.randint(1000, (4000,))

    def largest(loss_of):
        with torch.profiler.profile(profile_memory=True) as profile:
            loss_of().backward()
        return max(event.cpu_memory_usage for event in profile.events())

    n_bytes = 4000 * 1000 * 4
    assert largest(lambda: F.cross_entropy(queries_MD @ items_ND.T, targets_M)) >= n_bytes
    fused = largest(lambda: fused_linear_cross_entropy(queries_MD, targets_M, items_ND, chunk=400))
    assert fused <= n_bytes / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"chunk": 0}, "chunk must be at least 1 position, got 0"),
        ({"repeat_bias": torch.zeros(1)}, "needs `seen`"),
        ({"label_smoothing": 0.1, "log_weights_I": torch.zeros(N)}, "and log_weights_I over some"),
    ],
)
def test_options_that_do_not_go_together_are_refused(case, options, message):
    queries_MD, items_ND, targets_M = case
    with pytest.raises(ValueError, match=message):
        fused_linear_cross_entropy(queries_MD, targets_M, items_ND, **options)
