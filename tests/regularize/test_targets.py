"""Weighted and smoothed cross-entropy: torch's where both are the same, and else the sum by hand."""

import pytest
import torch
from torch.nn import functional as F

from trainwell import InputError
from trainwell.regularize import cross_entropy


@pytest.fixture
def outputs():
    return torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


Y = torch.arange(40) % 5
W = torch.tensor([1.0, 2.0, 5.0, 10.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignored", [-100, 3])
def test_without_weights_it_is_torchs_with_smoothing_and_ignored_targets(outputs, smoothing, ignored):
    targets = Y.clone()
    targets[:7] = ignored
    theirs = F.cross_entropy(outputs, targets, label_smoothing=smoothing, ignore_index=ignored)
    ours = cross_entropy(outputs, targets, label_smoothing=smoothing, ignore_index=ignored)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_weights_it_is_the_mean_over_the_samples_that_count(outputs, smoothing):
    targets = Y.clone()
    targets[:7] = -100
    total = 0.0
    for row, target in zip(outputs.log_softmax(1), targets.tolist(), strict=True):
        if target >= 0:
            total -= W[target] * ((1 - smoothing) * row[target] + smoothing * row.mean())
    torch.testing.assert_close(cross_entropy(outputs, targets, W, smoothing), total / 33, rtol=1e-12, atol=0)


def test_pieces_of_a_batch_add_up(outputs):
    targets = Y.sort().values  # so that the pieces have other classes
    halves = [cross_entropy(x, y, W) for x, y in zip(outputs.chunk(2), targets.chunk(2), strict=True)]
    torch.testing.assert_close(sum(halves) / 2, cross_entropy(outputs, targets, W))


def test_where_the_weights_of_the_samples_average_one_it_is_torchs(outputs):
    weight = W / W.mean()
    torch.testing.assert_close(cross_entropy(outputs, Y, weight), F.cross_entropy(outputs, Y, weight))


def test_the_weight_of_one_sample_does_not_cancel(outputs):
    one, target = outputs[:1], torch.tensor([3])
    torch.testing.assert_close(cross_entropy(one, target, W), 10 * F.cross_entropy(one, target))


def test_where_all_targets_are_ignored_it_is_0_with_a_gradient_of_0(outputs):
    outputs.requires_grad_()
    loss = cross_entropy(outputs, torch.full((40,), -100), W, 0.1)
    loss.backward()
    assert loss == 0
    assert not outputs.grad.any()


def test_a_class_at_each_place_of_an_image():
    outputs, targets = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randint(0, 5, (2, 3, 4))
    targets[0, 0] = -100
    theirs = F.cross_entropy(outputs, targets, weight=W, reduction="none").sum() / 20
    torch.testing.assert_close(cross_entropy(outputs, targets, W), theirs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"outputs": torch.zeros(5)}, r"outputs have shape \(5,\): logits are \(n, classes\)"),
        ({"targets": torch.zeros(3, 5)}, r"targets are torch\.float32: give the numbers of the classes"),
        ({"weight": torch.ones(4)}, r"weight has shape \(4,\): give one for each of 5 classes"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
    ],
)
def test_bad_input(given, message):
    with pytest.raises(InputError, match=message):
        cross_entropy(**{"outputs": torch.zeros(3, 5), "targets": torch.zeros(3, dtype=torch.int64), **given})
