"""Losses of every position: equal to their plain forms, in memory for a chunk."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ftmamba.losses import full_softmax_loss, in_batch_loss
from ftmamba.losses.sequences import (
    NegativeSampler,
    Prefixes,
    fused_linear_cross_entropy,
    fused_linear_cross_entropy_of_each,
    sequence_gbce,
    sequence_in_batch,
    sequence_sampled_softmax,
)
from ftmamba.losses.sequences import candidates as candidates_module
from ftmamba.losses.sequences.gbce import gbce_beta
from ftmamba.losses.sequences.in_chunks import mean_in_chunks

M, I, D = 23, 11, 5


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def case(generator):
    """Outputs, items and bias in float64 with gradients, targets, and weights, one of them 0."""
    hidden_MD, items_ID, bias_I = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((M, D), (I, D), (I,))
    )
    targets_M = torch.randint(I, (M,), generator=generator)
    weights_M = torch.rand(M, generator=generator, dtype=torch.float64)
    weights_M[4] = 0
    return hidden_MD, items_ID, bias_I, targets_M, weights_M


def assert_same_with_gradients(found, wanted, tensors, **tolerance):
    torch.testing.assert_close(found, wanted, **tolerance)
    for one, other in zip(
        torch.autograd.grad(3 * found, tensors),
        torch.autograd.grad(3 * wanted, tensors),
        strict=True,
    ):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("chunk", [None, 1, 7, 23, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_fused_loss_is_the_plain_one_with_its_gradients(case, chunk, smoothing, weighted):
    hidden_MD, items_ID, bias_I, targets_M, weights_M = case
    weights_M = weights_M if weighted else None
    plain_M = F.cross_entropy(
        hidden_MD @ items_ID.T + bias_I, targets_M, label_smoothing=smoothing, reduction="none"
    )
    wanted = (plain_M if weights_M is None else plain_M * weights_M).mean()
    found, losses_M = fused_linear_cross_entropy_of_each(
        hidden_MD, targets_M, items_ID, bias_I, smoothing, weights_M=weights_M, chunk=chunk
    )
    assert_same_with_gradients(found, wanted, (hidden_MD, items_ID, bias_I), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(losses_M, plain_M.detach(), rtol=1e-12, atol=1e-14)
    assert not losses_M.requires_grad


def test_the_fused_loss_needs_no_bias(case):
    hidden_MD, items_ID, _, targets_M, _ = case
    wanted = F.cross_entropy(hidden_MD @ items_ID.T, targets_M)
    found = fused_linear_cross_entropy(hidden_MD, targets_M, items_ID, chunk=6)
    assert_same_with_gradients(found, wanted, (hidden_MD, items_ID), rtol=1e-12, atol=1e-14)


def test_large_logits_do_not_overflow(case):
    hidden_MD, items_ID, _, targets_M, _ = (one.detach() for one in case)
    hidden_MD = (hidden_MD * 1e4).float().requires_grad_()
    items_ID = items_ID.float().requires_grad_()
    found = fused_linear_cross_entropy(hidden_MD, targets_M, items_ID)
    wanted = F.cross_entropy(hidden_MD @ items_ID.T, targets_M)
    assert_same_with_gradients(found, wanted, (hidden_MD, items_ID), rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_float32_also_under_autocast(case):
    hidden_MD, items_ID, _, targets_M, _ = (one.detach() for one in case)
    halves = [one.bfloat16().requires_grad_() for one in (hidden_MD, items_ID)]
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_linear_cross_entropy(halves[0], targets_M, halves[1])
    wanted = F.cross_entropy(halves[0].float() @ halves[1].float().T, targets_M)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(found, halves)
    assert [one.dtype for one in gradients] == [torch.bfloat16] * 2


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_was_taken_before_is_left_out_and_a_target_stays(case, generator, chunk, weighted):
    hidden_MD, items_ID, bias_I, targets_M, weights_M = case
    items_BT = torch.randint(I, (4, 6), generator=generator)
    windows_M = torch.arange(M) % 4
    lengths_M = torch.arange(M) % 7
    excluded_MI = torch.zeros(M, I, dtype=torch.bool)
    for place in range(M):
        excluded_MI[place, items_BT[windows_M[place], : lengths_M[place]]] = True
    assert excluded_MI[torch.arange(M), targets_M].any()
    assert not excluded_MI[lengths_M == 0].any()
    excluded_MI[torch.arange(M), targets_M] = False
    logits_MI = (hidden_MD @ items_ID.T + bias_I).masked_fill(excluded_MI, -torch.inf)
    plain_M = F.cross_entropy(logits_MI, targets_M, reduction="none")
    found = fused_linear_cross_entropy(
        hidden_MD,
        targets_M,
        items_ID,
        bias_I,
        weights_M=weights_M if weighted else None,
        prefixes=Prefixes(items_BT, windows_M, lengths_M),
        chunk=chunk,
    )
    wanted = (plain_M * weights_M).mean() if weighted else plain_M.mean()
    assert_same_with_gradients(found, wanted, (hidden_MD, items_ID, bias_I), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("start", [0.0, -2.5])
def test_what_was_taken_before_gets_a_bias_which_is_learned(
    case, generator, chunk, smoothing, start
):
    hidden_MD, items_ID, bias_I, targets_M, weights_M = case
    repeat_bias = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    items_BT = torch.randint(I, (4, 6), generator=generator)
    items_BT[0, :3] = items_BT[0, 0]
    windows_M, lengths_M = torch.arange(M) % 4, torch.arange(M) % 7
    taken_MI = torch.zeros(M, I, dtype=torch.bool)
    for place in range(M):
        taken_MI[place, items_BT[windows_M[place], : lengths_M[place]]] = True
    assert taken_MI[torch.arange(M), targets_M].any()
    logits_MI = hidden_MD @ items_ID.T + bias_I + repeat_bias * taken_MI
    plain_M = F.cross_entropy(logits_MI, targets_M, reduction="none", label_smoothing=smoothing)
    found = fused_linear_cross_entropy(
        hidden_MD,
        targets_M,
        items_ID,
        bias_I,
        smoothing,
        weights_M=weights_M,
        prefixes=Prefixes(items_BT, windows_M, lengths_M),
        repeat_bias=repeat_bias,
        chunk=chunk,
    )
    tensors = (hidden_MD, items_ID, bias_I, repeat_bias)
    assert_same_with_gradients(found, (plain_M * weights_M).mean(), tensors, rtol=1e-12, atol=1e-14)


def test_a_bias_of_repeats_needs_what_was_taken(case):
    hidden_MD, items_ID, _, targets_M, _ = case
    with pytest.raises(ValueError, match="needs prefixes"):
        fused_linear_cross_entropy(
            hidden_MD, targets_M, items_ID, repeat_bias=torch.zeros(1, dtype=torch.float64)
        )


def test_windows_without_events_leave_nothing_out(case):
    hidden_MD, items_ID, _, targets_M, _ = case
    nothing = Prefixes(
        torch.empty(4, 0, dtype=torch.int64), targets_M % 4, torch.zeros_like(targets_M)
    )
    assert fused_linear_cross_entropy(
        hidden_MD, targets_M, items_ID, prefixes=nothing
    ) == fused_linear_cross_entropy(hidden_MD, targets_M, items_ID)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk", [None, 128])
def test_products_in_bfloat16_are_right_but_for_rounding(generator, smoothing, with_bias, chunk):
    tensors = [
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((400, 16), (300, 16), (300,))
    ][: 3 if with_bias else 2]
    targets_M = torch.randint(300, (400,), generator=generator)
    logits_MI = tensors[0] @ tensors[1].T + (tensors[2] if with_bias else 0)
    wanted = F.cross_entropy(logits_MI, targets_M, label_smoothing=smoothing)
    bias_I = tensors[2] if with_bias else None

    def fused(**options):
        return fused_linear_cross_entropy(
            tensors[0], targets_M, tensors[1], bias_I, smoothing, **options
        )

    found = fused(products_in=torch.bfloat16, chunk=chunk)
    assert found.dtype == torch.float32
    assert found != fused()
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=0)
    for one, other in zip(
        torch.autograd.grad(found, tensors), torch.autograd.grad(wanted, tensors), strict=True
    ):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("bias", [None, -1.5])
def test_products_in_bfloat16_know_what_was_taken_before(generator, bias):
    hidden_MD, items_ID = (
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((400, 16), (300, 16))
    )
    repeat_bias = None if bias is None else torch.tensor([bias], requires_grad=True)
    targets_M = torch.randint(300, (400,), generator=generator)
    prefixes = Prefixes(
        torch.randint(300, (8, 50), generator=generator),
        torch.arange(400) // 50,
        torch.arange(400) % 50,
    )
    tensors = [hidden_MD, items_ID] + ([] if repeat_bias is None else [repeat_bias])
    wanted, found = (
        fused_linear_cross_entropy(
            hidden_MD, targets_M, items_ID, prefixes=prefixes, repeat_bias=repeat_bias,
            products_in=kind, chunk=chunk,
        )
        for kind, chunk in ((None, None), (torch.bfloat16, 128))
    )  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=0)
    for one, other in zip(
        torch.autograd.grad(found, tensors), torch.autograd.grad(wanted, tensors), strict=True
    ):
        assert (one - other).norm() < 0.01 * other.norm()


def test_without_gradients_the_loss_is_the_same_and_nothing_is_kept(case):
    hidden_MD, items_ID, _, targets_M, _ = case
    with_gradient = fused_linear_cross_entropy(hidden_MD, targets_M, items_ID)
    with torch.no_grad():
        without = fused_linear_cross_entropy(hidden_MD, targets_M, items_ID)
    assert without.grad_fn is None
    assert without.item() == with_gradient.item()


def test_no_tensor_is_as_large_as_all_logits():
    """Seen through the allocations that torch's profiler counts."""
    hidden_MD = torch.randn(4000, 8, requires_grad=True)
    items_ID = torch.randn(1000, 8, requires_grad=True)
    targets_M = torch.randint(1000, (4000,))

    def largest(loss_of):
        with torch.profiler.profile(profile_memory=True) as profile:
            loss_of().backward()
        return max(event.cpu_memory_usage for event in profile.events())

    def plain():
        return F.cross_entropy(hidden_MD @ items_ID.T, targets_M)

    n_bytes = 4000 * 1000 * 4
    assert largest(plain) >= n_bytes
    fused = largest(lambda: fused_linear_cross_entropy(hidden_MD, targets_M, items_ID, chunk=400))
    assert fused <= n_bytes / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"chunk": 0}, "chunk must be at least 1 position, got 0"),
    ],
)
def test_options_out_of_range_are_refused(case, options, message):
    hidden_MD, items_ID, _, targets_M, _ = case
    with pytest.raises(ValueError, match=message):
        fused_linear_cross_entropy(hidden_MD, targets_M, items_ID, **options)


def test_full_softmax_of_positions_is_that_of_rows(case):
    hidden_MD, items_ID, _, targets_M, weights_M = case
    assert_same_with_gradients(
        fused_linear_cross_entropy(hidden_MD, targets_M, items_ID, weights_M=weights_M),
        full_softmax_loss(hidden_MD, items_ID, targets_M, weights_B=weights_M),
        (hidden_MD, items_ID),
    )


def sampled_by_hand(hidden_MD, targets_M, items_ID, negatives, log_q_I):
    """The definition, one position and one negative at a time."""
    losses = []
    for m, target in enumerate(targets_M.tolist()):
        own = negatives if negatives.ndim == 1 else negatives[m]
        score = hidden_MD[m] @ items_ID[target]
        terms = [score]
        for negative in own.tolist():
            if negative != target:
                logit = hidden_MD[m] @ items_ID[negative]
                if log_q_I is not None:
                    logit = logit - math.log(len(own)) - log_q_I[negative]
                terms.append(logit)
        losses.append(torch.stack(terms).logsumexp(0) - score)
    return torch.stack(losses)


def gbce_by_hand(hidden_MD, targets_M, items_ID, negatives, beta):
    losses = []
    for m, target in enumerate(targets_M.tolist()):
        own = negatives if negatives.ndim == 1 else negatives[m]
        terms = [-beta * torch.sigmoid(hidden_MD[m] @ items_ID[target]).log()]
        terms += [
            -(1 - torch.sigmoid(hidden_MD[m] @ items_ID[negative])).log()
            for negative in own.tolist()
            if negative != target
        ]
        losses.append(sum(terms) / (1 + len(own)))
    return torch.stack(losses)


@pytest.fixture(params=["shared", "of each position"])
def negatives(request, generator):
    shape = (6,) if request.param == "shared" else (M, 6)
    return torch.randint(I, shape, generator=generator)


@pytest.fixture(params=[1, 40, 10**6], ids=["chunks of 1", "chunks of few", "one chunk"])
def numbers_at_once(request, monkeypatch):
    monkeypatch.setattr(candidates_module, "NUMBERS_AT_ONCE", request.param)


@pytest.mark.parametrize("corrected", [False, True])
def test_sampled_softmax_by_hand(case, negatives, corrected, numbers_at_once, generator):
    hidden_MD, items_ID, _, targets_M, weights_M = case
    q_I = torch.rand(I, generator=generator, dtype=torch.float64) + 0.1
    log_q_I = (q_I / q_I.sum()).log() if corrected else None
    by_hand_M = sampled_by_hand(hidden_MD, targets_M, items_ID, negatives, log_q_I)
    assert (negatives == targets_M[:, None]).any()
    found = sequence_sampled_softmax(
        hidden_MD, targets_M, items_ID, negatives=negatives, log_q_I=log_q_I, weights_M=weights_M
    )
    assert_same_with_gradients(found, (by_hand_M * weights_M).mean(), (hidden_MD, items_ID))


def test_gbce_by_hand(case, negatives, numbers_at_once):
    hidden_MD, items_ID, _, targets_M, _ = case
    by_hand_M = gbce_by_hand(hidden_MD, targets_M, items_ID, negatives, gbce_beta(6, I, 0.6))
    found = sequence_gbce(hidden_MD, targets_M, items_ID, negatives=negatives, n_items=I, t=0.6)
    assert_same_with_gradients(found, by_hand_M.mean(), (hidden_MD, items_ID))


def test_beta_is_one_without_calibration_and_the_sampling_rate_with_all_of_it():
    assert gbce_beta(256, 3417, 0.0) == pytest.approx(1)
    assert gbce_beta(256, 3417, 1.0) == pytest.approx(256 / 3416)
    # half way between them, by hand
    assert gbce_beta(5, 11, 0.5) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("n_negatives", "t", "message"),
    [(5, 1.5, r"t must be in \[0, 1\], got 1.5"), (11, 0.5, "11 negatives .* draw from 1 to 10")],
)
def test_gbce_refuses_what_it_cannot_calibrate(n_negatives, t, message):
    with pytest.raises(ValueError, match=message):
        gbce_beta(n_negatives, 11, t)


@pytest.mark.parametrize("corrected", [False, True])
def test_in_batch_over_positions_is_that_of_rows(case, corrected, numbers_at_once, generator):
    hidden_MD, items_ID, _, targets_M, _ = case
    log_q_I = torch.randn(I, generator=generator, dtype=torch.float64) if corrected else None
    wanted = in_batch_loss(
        hidden_MD,
        items_ID[targets_M],
        positives_B=torch.arange(M),
        item_ids_M=targets_M,
        log_q_M=None if log_q_I is None else log_q_I[targets_M],
    )
    found = sequence_in_batch(hidden_MD, targets_M, items_ID, log_q_I=log_q_I)
    assert_same_with_gradients(found, wanted, (hidden_MD, items_ID))


@pytest.mark.parametrize("kind", ["uniform", "popularity", "mixed"])
def test_many_corrected_negatives_come_to_the_full_softmax(case, kind):
    hidden_MD, items_ID, _, targets_M, _ = (one.detach().float() for one in case)
    targets_M = targets_M.long()
    hidden_MD.requires_grad_()
    sampler = NegativeSampler(kind, np.arange(1, I + 1) ** 2)
    (exact,) = torch.autograd.grad(
        fused_linear_cross_entropy(hidden_MD, targets_M, items_ID), hidden_MD
    )

    def error(log_q_I):
        negatives = sampler.draw((200_000,), step=0)
        loss = sequence_sampled_softmax(
            hidden_MD, targets_M, items_ID, negatives=negatives, log_q_I=log_q_I
        )
        return (torch.autograd.grad(loss, hidden_MD)[0] - exact).norm() / exact.norm()

    assert error(sampler.log_q) < 0.02
    assert error(None) > 0.1


LOSSES = {
    "full_softmax": fused_linear_cross_entropy,
    "in_batch": sequence_in_batch,
    "sampled_softmax": lambda h, t, i: sequence_sampled_softmax(
        h, t, i, negatives=torch.tensor([1, 2])
    ),
    "gbce": lambda h, t, i: sequence_gbce(h, t, i, negatives=torch.tensor([1]), n_items=I),
}


@pytest.mark.parametrize("name", LOSSES)
def test_no_position_is_no_loss_and_no_gradient(name):
    hidden_MD = torch.randn(0, D, requires_grad=True)
    items_ID = torch.randn(I, D, requires_grad=True)
    loss = LOSSES[name](hidden_MD, torch.empty(0, dtype=torch.int64), items_ID)
    loss.backward()
    assert loss.item() == 0
    assert not items_ID.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_the_names_of_tensors_tell_their_shapes(name, case, checked_shapes):
    hidden_MD, items_ID, _, targets_M, _ = case
    with checked_shapes("ftmamba.losses"):
        LOSSES[name](hidden_MD, targets_M, items_ID).backward()


def test_a_mean_in_chunks_takes_gradients_only_where_they_are_wanted():
    rows_MD, shared_D = torch.randn(7, 3), torch.randn(3, requires_grad=True)
    found = mean_in_chunks(lambda x, w: (x * w).sum(1) ** 2, (rows_MD,), (shared_D,), chunk=3)
    wanted = ((rows_MD * shared_D).sum(1) ** 2).mean()
    assert_same_with_gradients(found, wanted, (shared_D,))


@pytest.mark.parametrize("kind", ["uniform", "popularity", "mixed"])
def test_negatives_are_drawn_with_the_probabilities_they_tell(kind):
    counts_I = np.array([0, 5, 1, 0, 14, 0])
    sampler = NegativeSampler(kind, counts_I, seed=1)
    drawn = np.bincount(sampler.draw((400, 500), step=0).numpy().ravel(), minlength=6)
    popular = counts_I / 20
    expected = {"uniform": np.full(6, 1 / 6), "popularity": popular}
    expected["mixed"] = (popular + 1 / 6) / 2
    np.testing.assert_allclose(drawn / drawn.sum(), expected[kind], atol=0.004)
    np.testing.assert_allclose(sampler.log_q.exp(), expected[kind], rtol=1e-5)
    assert not drawn[expected[kind] == 0].any()


def test_draws_differ_by_seed_step_and_rank_and_repeat_exactly():
    def draw(seed=0, step=3, rank=0):
        return NegativeSampler("mixed", np.arange(50), seed=seed).draw((20,), step, rank).tolist()

    assert draw() == draw()
    assert len({tuple(x) for x in (draw(), draw(seed=1), draw(step=4), draw(rank=1))}) == 4


def test_negatives_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="got 'popular'; did you mean 'popularity'"):
        NegativeSampler("popular", np.ones(3))
    with pytest.raises(ValueError, match="all 3 are 0; draw them 'uniform'"):
        NegativeSampler("mixed", np.zeros(3))
