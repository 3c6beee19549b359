"""The fused cross-entropy: equal to the plain one, in memory for a chunk."""

import pytest
import torch
from torch.nn import functional as F

from ftmamba.training.fused_cross_entropy import fused_linear_cross_entropy
from ftmamba.training.negatives import SeenItems

M, I, D = 23, 11, 5


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def case(generator):
    """Queries and items in float64 with gradients, targets, and weights, one of them 0."""
    hidden_MD, items_ID = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((M, D), (I, D))
    )
    targets_M = torch.randint(I, (M,), generator=generator)
    weights_M = torch.rand(M, generator=generator, dtype=torch.float64)
    weights_M[4] = 0
    return hidden_MD, items_ID, targets_M, weights_M


@pytest.fixture
def seen(generator):
    """Items that positions have seen, some of them twice; of which their targets are some."""
    items_BT = torch.randint(I, (4, 6), generator=generator)
    items_BT[0, :3] = items_BT[0, 0]
    return SeenItems(items_BT, torch.arange(M) % 4, torch.arange(M) % 7)


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


@pytest.mark.parametrize("chunk", [None, 1, 7, 23, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_fused_loss_is_the_plain_one_with_its_gradients(case, chunk, smoothing, weighted):
    hidden_MD, items_ID, targets_M, weights_M = case
    plain_M = F.cross_entropy(
        hidden_MD @ items_ID.T, targets_M, label_smoothing=smoothing, reduction="none"
    )
    wanted = (plain_M * weights_M if weighted else plain_M).mean()
    options = {"label_smoothing": smoothing, "weights_M": weights_M if weighted else None}
    found = fused_linear_cross_entropy(hidden_MD, targets_M, items_ID, chunk=chunk, **options)
    assert_same_with_gradients(found, wanted, (hidden_MD, items_ID))


def test_items_may_stand_for_several(case, generator):
    hidden_MD, items_ID, targets_M, _ = case
    log_weights_I = torch.randn(I, generator=generator, dtype=torch.float64)
    wanted = F.cross_entropy(hidden_MD @ items_ID.T + log_weights_I, targets_M)
    found = fused_linear_cross_entropy(
        hidden_MD, targets_M, items_ID, log_weights_I=log_weights_I, chunk=6
    )
    assert_same_with_gradients(found, wanted, (hidden_MD, items_ID))


def test_large_logits_do_not_overflow(case):
    hidden_MD, items_ID, targets_M, _ = (one.detach() for one in case)
    hidden_MD = (hidden_MD * 1e4).float().requires_grad_()
    items_ID = items_ID.float().requires_grad_()
    found = fused_linear_cross_entropy(hidden_MD, targets_M, items_ID)
    wanted = F.cross_entropy(hidden_MD @ items_ID.T, targets_M)
    assert_same_with_gradients(found, wanted, (hidden_MD, items_ID), rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_float32_also_under_autocast(case):
    hidden_MD, items_ID, targets_M, _ = (one.detach() for one in case)
    halves = [one.bfloat16().requires_grad_() for one in (hidden_MD, items_ID)]
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_linear_cross_entropy(halves[0], targets_M, halves[1])
    wanted = F.cross_entropy(halves[0].float() @ halves[1].float().T, targets_M)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert [one.dtype for one in torch.autograd.grad(found, halves)] == [torch.bfloat16] * 2


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_seen_items_are_left_out_and_a_target_stays(case, seen, chunk, weighted):
    hidden_MD, items_ID, targets_M, weights_M = case
    excluded_MI = torch.zeros(M, I, dtype=torch.bool)
    for m in range(M):
        excluded_MI[m, seen.items[seen.lists[m], : seen.lengths[m]]] = True
    assert excluded_MI[torch.arange(M), targets_M].any()
    assert not excluded_MI[seen.lengths == 0].any()
    excluded_MI[torch.arange(M), targets_M] = False
    logits_MI = (hidden_MD @ items_ID.T).masked_fill(excluded_MI, -torch.inf)
    plain_M = F.cross_entropy(logits_MI, targets_M, reduction="none")
    weights_M = weights_M if weighted else torch.ones_like(weights_M)
    found = fused_linear_cross_entropy(
        hidden_MD, targets_M, items_ID, weights_M=weights_M, seen=seen, chunk=chunk
    )
    assert_same_with_gradients(found, (plain_M * weights_M).mean(), (hidden_MD, items_ID))


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("start", [0.0, -2.5])
def test_seen_items_get_a_bias_which_is_learned(case, seen, chunk, smoothing, start):
    hidden_MD, items_ID, targets_M, weights_M = case
    bias = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    seen_MI = torch.zeros(M, I, dtype=torch.bool)
    for m in range(M):
        seen_MI[m, seen.items[seen.lists[m], : seen.lengths[m]]] = True
    assert seen_MI[torch.arange(M), targets_M].any()
    logits_MI = hidden_MD @ items_ID.T + bias * seen_MI
    plain_M = F.cross_entropy(logits_MI, targets_M, reduction="none", label_smoothing=smoothing)
    options = {"label_smoothing": smoothing, "weights_M": weights_M, "chunk": chunk}
    found = fused_linear_cross_entropy(
        hidden_MD, targets_M, items_ID, seen=seen, repeat_bias=bias, **options
    )
    assert_same_with_gradients(found, (plain_M * weights_M).mean(), (hidden_MD, items_ID, bias))


def test_windows_without_events_leave_nothing_out(case):
    hidden_MD, items_ID, targets_M, _ = case
    nothing = SeenItems(
        torch.empty(4, 0, dtype=torch.int64), targets_M % 4, torch.zeros_like(targets_M)
    )
    assert fused_linear_cross_entropy(
        hidden_MD, targets_M, items_ID, seen=nothing
    ) == fused_linear_cross_entropy(hidden_MD, targets_M, items_ID)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.3}, {"log_weights_I": -1.0}])
@pytest.mark.parametrize("bias", ["nothing seen", None, -1.5])
@pytest.mark.parametrize("chunk", [None, 128])
def test_products_in_bfloat16_are_right_but_for_rounding(generator, options, bias, chunk):
    hidden_MD, items_ID = (
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((400, 16), (300, 16))
    )
    tensors, options = [hidden_MD, items_ID], dict(options)
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
            hidden_MD, targets_M, items_ID, products_in=kind, chunk=size, **options
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
    hidden_MD, items_ID, targets_M, _ = case
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

    n_bytes = 4000 * 1000 * 4
    assert largest(lambda: F.cross_entropy(hidden_MD @ items_ID.T, targets_M)) >= n_bytes
    fused = largest(lambda: fused_linear_cross_entropy(hidden_MD, targets_M, items_ID, chunk=400))
    assert fused <= n_bytes / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"chunk": 0}, "chunk must be at least 1 position, got 0"),
        ({"repeat_bias": torch.zeros(1)}, "needs `seen`"),
        ({"label_smoothing": 0.1, "log_weights_I": torch.zeros(I)}, "and log_weights_I over some"),
    ],
)
def test_options_that_do_not_go_together_are_refused(case, options, message):
    hidden_MD, items_ID, targets_M, _ = case
    with pytest.raises(ValueError, match=message):
        fused_linear_cross_entropy(hidden_MD, targets_M, items_ID, **options)
