"""Mixup and CutMix: their papers' formulas given the draws, and the draws themselves."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional as F

from trainwell import InputError
from trainwell.regularize import cross_entropy, cutmix, mix, mixed_loss, mixup


def test_mixup_is_the_papers_formula():
    x = torch.randn(5, 3, 4, 4)
    share, partners = torch.rand(5), torch.tensor([3, 0, 2, 4, 1])
    mixed = mixup(x, share=share, partners=partners)
    for i in range(5):
        torch.testing.assert_close(mixed.inputs[i], share[i] * x[i] + (1 - share[i]) * x[partners[i]])
    assert torch.equal(mixed.share, share)


FRACTION = st.floats(0, 1, exclude_max=True, width=32)


@given(st.floats(0, 1, width=32), FRACTION, FRACTION, st.integers(1, 33), st.integers(1, 33))
def test_cutmix_is_the_papers_box(share, row, column, height, width):
    own, other = torch.zeros(1, height, width), torch.ones(1, height, width)
    mixed = cutmix(torch.stack([own, other]), share=torch.tensor([share, 1.0]), partners=torch.tensor([1, 0]),
                   centres=torch.tensor([[row, column], [0, 0]]).double())  # fmt: skip
    # As in the authors' rand_bbox: half sides by whole numbers, cut off at the border.
    cut = math.sqrt(1 - share)
    box_h, box_w = int(height * cut), int(width * cut)
    y, x = int(row * height), int(column * width)
    y1, y2 = np.clip([y - box_h // 2, y + box_h // 2], 0, height)
    x1, x2 = np.clip([x - box_w // 2, x + box_w // 2], 0, width)
    expected = torch.zeros(1, height, width)
    expected[:, y1:y2, x1:x2] = 1
    assert torch.equal(mixed.inputs[0], expected)
    assert float(mixed.share[0]) == pytest.approx(1 - (y2 - y1) * (x2 - x1) / (height * width), abs=1e-6)
    assert torch.equal(mixed.inputs[1], other)
    assert mixed.share[1] == 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_beta_distribution_and_partners_are_a_permutation(alpha):
    mixed = mixup(torch.zeros(20_000, 1), 0, alpha=alpha)
    low = mixed.share[mixed.share < 0.5].double().numpy()  # near 1 float32 has few numbers
    assert stats.binomtest(len(low), 20_000).pvalue > 1e-4
    assert stats.kstest(low, lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 1e-4
    assert torch.equal(mixed.partners.sort().values, torch.arange(20_000))
    assert abs(np.corrcoef(mixed.partners.numpy(), np.arange(20_000))[0, 1]) < 0.03


@pytest.mark.parametrize("function", [mixup, cutmix])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_it_is_a_function_of_the_place_for_any_batch(function, n):
    x = torch.randn(n, 3, 8, 8)
    before = x.clone()
    first, again, other = function(x, 0, 5), function(x, 0, 5), function(x, 0, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.share, other.share) or function is cutmix
    assert torch.equal(x, before)
    assert first.inputs.shape == x.shape
    assert ((first.share >= 0) & (first.share <= 1)).all()


@pytest.mark.parametrize("function", [mixup, cutmix])
def test_dtype_and_layout_are_kept(function):
    x = torch.randn(4, 3, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last)
    mixed = function(x, 0)
    assert mixed.inputs.dtype == torch.bfloat16
    assert mixed.inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_mixed_targets(smoothing):
    outputs, y, others = torch.randn(6, 4), torch.randint(0, 4, (6,)), torch.randint(0, 4, (6,))
    share = torch.rand(6)
    soft = share[:, None] * F.one_hot(y, 4) + (1 - share[:, None]) * F.one_hot(others, 4)
    ours = mixed_loss(lambda o, t: F.cross_entropy(o, t, label_smoothing=smoothing), outputs, y, others, share)
    torch.testing.assert_close(ours, F.cross_entropy(outputs, soft, label_smoothing=smoothing))


def test_the_loss_of_numbers_and_of_labels():
    outputs, y, others, share = torch.randn(6, 2), torch.rand(6, 2), torch.rand(6, 2), torch.rand(6)
    for loss in (F.mse_loss, F.binary_cross_entropy_with_logits):
        each = [share[i] * loss(outputs[i], y[i]) + (1 - share[i]) * loss(outputs[i], others[i]) for i in range(6)]
        torch.testing.assert_close(mixed_loss(loss, outputs, y, others, share), torch.stack(each).mean())


W = torch.tensor([1.0, 10.0, 100.0])


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(weight=W, reduction="none"), functools.partial(F.cross_entropy, weight=W, reduction="none"),
     functools.partial(cross_entropy, weight=W), lambda o, t: cross_entropy(o, t, W)],
)  # fmt: skip
def test_class_weights_count_in_the_loss_of_mixed_targets(loss):
    torch.manual_seed(0)
    outputs, y, share = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 0]), torch.rand(6)
    others = y.roll(1)
    log_p = outputs.log_softmax(1)
    by_hand = sum(
        -share[i] * W[y[i]] * log_p[i, y[i]] - (1 - share[i]) * W[others[i]] * log_p[i, others[i]] for i in range(6)
    )
    torch.testing.assert_close(mixed_loss(loss, outputs, y, others, share), by_hand / 6)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(reduction="none", ignore_index=2),
                                  functools.partial(cross_entropy, ignore_index=2)])  # fmt: skip
def test_ignored_targets_add_nothing_to_the_loss_of_mixed_targets(loss):
    outputs, y, others, share = torch.randn(3, 3), torch.tensor([0, 2, 2]), torch.tensor([2, 1, 2]), torch.rand(3)
    log_p = outputs.log_softmax(1)
    by_hand = -share[0] * log_p[0, 0] - (1 - share[1]) * log_p[1, 1]
    torch.testing.assert_close(mixed_loss(loss, outputs, y, others, share), by_hand / 3)


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(weight=W), nn.NLLLoss(W), functools.partial(F.cross_entropy, weight=W),
     functools.partial(F.nll_loss, weight=W, reduction="mean")],
    ids=["module", "nll", "partial", "partial with mean"],
)  # fmt: skip
def test_class_weights_that_would_cancel_are_refused(loss):
    with pytest.raises(
        InputError, match=r"they would cancel: take functools\.partial\(tw\.regularize\.cross"
    ) as caught:
        mixed_loss(loss, torch.randn(2, 3), torch.tensor([0, 1]), torch.tensor([1, 0]), torch.rand(2))
    assert "\n" not in str(caught.value)


def test_weights_of_labels_which_do_not_cancel_are_taken():
    outputs, y, share = torch.randn(6, 3), torch.rand(6, 3), torch.rand(6)
    others = y.roll(1, 0)
    for loss in (nn.BCEWithLogitsLoss(weight=W), functools.partial(F.binary_cross_entropy_with_logits, weight=W)):
        each = [share[i] * loss(outputs[i], y[i]) + (1 - share[i]) * loss(outputs[i], others[i]) for i in range(6)]
        torch.testing.assert_close(mixed_loss(loss, outputs, y, others, share), torch.stack(each).mean())


def test_a_loss_of_each_number_is_refused_by_its_shape():
    outputs, y = torch.randn(4, 2), torch.rand(4, 2)
    with pytest.raises(InputError, match=r"the loss has shape \(4, 2\) for 4 samples"):
        mixed_loss(nn.MSELoss(reduction="none"), outputs, y, y, torch.rand(4))


def _mixed_by_both(x, *where):
    return mix(x, *where, mixup_alpha=1.0, cutmix_alpha=1.0)


@pytest.mark.parametrize("function", [mixup, cutmix, _mixed_by_both])
def test_without_a_place_it_follows_torchs_generator(function):
    x = torch.randn(16, 3, 8, 8)
    torch.manual_seed(3)
    first, second = function(x), function(x)
    assert not torch.equal(first.partners, second.partners)
    assert not torch.equal(first.inputs, second.inputs)
    torch.manual_seed(3)
    for before in (first, second):
        assert all(torch.equal(a, b) for a, b in zip(before, function(x), strict=True))
    state = torch.get_rng_state()
    function(x, 0, 5)
    assert torch.equal(torch.get_rng_state(), state)  # at a place nothing is drawn from it


@pytest.mark.parametrize("function", [mixup, cutmix, _mixed_by_both])
def test_a_share_in_the_place_of_the_place_is_refused(function):
    with pytest.raises(InputError, match=r"a place is made of whole numbers and words, not 0\.4"):
        function(torch.zeros(2, 1, 4, 4), 0.4)


def test_mixup_of_whole_numbers_is_refused_and_cutmix_takes_them():
    x = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    for function in (mixup, lambda x, *where: mix(x, *where, mixup_alpha=0.2)):
        with pytest.raises(InputError, match=r"give floats, as x\.float\(\) / 255"):
            function(x, 0)
    mixed = cutmix(x, 0)
    assert mixed.inputs.dtype == torch.uint8
    assert ((mixed.inputs == x) | (mixed.inputs == x[mixed.partners])).all()


def test_a_share_may_be_one_number_and_all_may_be_lists():
    x = torch.randn(3, 1, 8, 8)
    for share in (0.25, [0.25, 0.25, 0.25], np.full(3, 0.25, np.float32), 1):
        mixed = mixup(x, share=share, partners=[1, 2, 0])
        own = torch.as_tensor(share).expand(3)
        torch.testing.assert_close(mixed.inputs, own.view(3, 1, 1, 1) * x + (1 - own).view(3, 1, 1, 1) * x[[1, 2, 0]])
        assert torch.equal(mixed.share, own.float())
    given = {"share": torch.full((3,), 0.75), "partners": torch.tensor([1, 2, 0])}
    expected = cutmix(x, **given, centres=torch.full((3, 2), 0.5))
    for centres in ([0.5, 0.5], [[0.5, 0.5]] * 3):
        mixed = cutmix(x, share=0.75, partners=[1, 2, 0], centres=centres)
        assert all(torch.equal(a, b) for a, b in zip(mixed, expected, strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [({"share": [0.1, 0.2]}, r"share has shape \(2,\): give one for each of 3 samples, \(3,\)"),
     ({"partners": [1, 0]}, r"partners has shape \(2,\)"), ({"centres": [0.1, 0.2, 0.3]}, r"centres has shape \(3,\)")],
)  # fmt: skip
def test_what_is_given_for_another_number_of_samples_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        cutmix(torch.zeros(3, 1, 4, 4), 0, **given)


def test_with_both_each_has_its_turn():
    x = torch.randn(4, 1, 8, 8)
    assert mix(x, 0) is None
    turns = []
    for step in range(400):
        mixed = mix(x, step, mixup_alpha=0.2, cutmix_alpha=1.0)
        turns.append(torch.equal(mixed.inputs, mixup(x, step, alpha=0.2).inputs))
        assert turns[-1] or torch.equal(mixed.inputs, cutmix(x, step, alpha=1.0).inputs)
    assert stats.binomtest(sum(turns), 400).pvalue > 1e-4


def test_bad_input():
    with pytest.raises(InputError, match="alpha is 0"):
        mixup(torch.zeros(2, 2), 0, alpha=0)
    with pytest.raises(InputError, match="CutMix is for images"):
        cutmix(torch.zeros(2, 2), 0)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (lambda x: mixup(x, alpha=math.inf), "alpha is inf"),
        (lambda x: mixup(x, share=2.0), "a share is below 0, above 1 or NaN"),
        (lambda x: mixup(x, share=math.nan), "a share is"),
        (lambda x: cutmix(x, share=-1.0), "a share is"),
        (lambda x: cutmix(x, share=0.5, centres=[3.0, 3.0]), "centres lie outside"),
        (lambda x: mixed_loss(F.cross_entropy, x[:, :, 0, 0], *[torch.zeros(4).long()] * 2, torch.ones(4, 1)),
         r"share has shape \(4, 1\)"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(mix, message):
    with pytest.raises(InputError, match=message):
        mix(torch.randn(4, 3, 8, 8))
