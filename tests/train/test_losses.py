import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.utils.class_weight import compute_class_weight

from trainwell.train import losses
from trainwell.train.losses import aligned, for_task

RNG = np.random.default_rng(0)


def test_classification_is_log_loss_and_smoothing_is_a_mix_with_uniform_targets():
    logits, targets = torch.from_numpy(RNG.normal(size=(50, 4))), torch.from_numpy(RNG.integers(0, 4, 50))
    objective, reported = for_task("classification", label_smoothing=0.1)
    chances = logits.softmax(1).numpy()
    plain = log_loss(targets.numpy(), chances, labels=range(4))
    uniform = -np.log(chances).mean()
    np.testing.assert_allclose(float(reported(logits, targets)), plain, rtol=1e-9)
    np.testing.assert_allclose(float(objective(logits, targets)), 0.9 * plain + 0.1 * uniform, rtol=1e-9)


def test_regression_is_mean_squared_error_also_for_one_output():
    outputs, targets = torch.from_numpy(RNG.normal(size=(50, 1))), torch.from_numpy(RNG.normal(size=50))
    loss, _ = for_task("regression")
    expected = mean_squared_error(targets.numpy(), outputs[:, 0].numpy())
    np.testing.assert_allclose(float(loss(aligned(outputs, targets), targets)), expected, rtol=1e-9)


def test_only_what_would_broadcast_is_aligned():
    assert aligned(torch.zeros(5, 1), torch.zeros(5)).shape == (5,)
    assert aligned(torch.zeros(5, 1), torch.zeros(5, 1)).shape == (5, 1)
    assert aligned(torch.zeros(5, 2), torch.zeros(5, 2)).shape == (5, 2)
    assert aligned(torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64)).shape == (5, 1)  # one class


def test_multilabel_is_the_mean_log_loss_of_the_labels():
    logits, targets = RNG.normal(size=(50, 3)), RNG.integers(0, 2, (50, 3)).astype(float)
    loss, _ = for_task("multilabel")
    expected = np.mean([log_loss(targets[:, k], 1 / (1 + np.exp(-logits[:, k]))) for k in range(3)])
    np.testing.assert_allclose(float(loss(torch.from_numpy(logits), torch.from_numpy(targets))), expected, rtol=1e-9)


# ------------------------------------------------------------------ unbalanced classes


def test_balanced_weights_are_those_of_scikit_learn():
    targets = np.repeat([0, 1, 2], [90, 9, 1])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert losses.balanced_weights(targets, "classification") == pytest.approx(expected, rel=1e-6)


def test_balanced_weights_of_labels_make_both_sides_count_the_same():
    targets = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]], np.float32)
    weights = losses.balanced_weights(targets, "multilabel")
    assert weights[:2] * targets.sum(0)[:2] == pytest.approx((1 - targets).sum(0)[:2])
    assert weights[2] == 1  # a label that nobody has


def test_the_objective_with_weights_is_the_mean_of_each_samples_loss_times_its_weight():
    outputs, targets, weight = torch.randn(4, 3), torch.tensor([0, 1, 2, 2]), torch.tensor([1.0, 2.0, 5.0])
    spread = 0.9 * torch.nn.functional.one_hot(targets, 3) + 0.1 / 3
    by_hand = -(spread * outputs.log_softmax(1)).sum(1) * weight[targets]
    objective, _ = losses.for_task("classification", 0.1, weight)
    torch.testing.assert_close(objective(outputs, targets), by_hand.mean())


def test_balanced_weights_make_the_objective_torchs_over_all_samples():
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor([90, 9, 1]))
    outputs = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    weight = torch.from_numpy(losses.balanced_weights(targets.numpy(), "classification"))
    objective, _ = losses.for_task("classification", weight=weight)
    torch.testing.assert_close(objective(outputs, targets), torch.nn.functional.cross_entropy(outputs, targets, weight))


def test_what_is_reported_has_no_weights():
    outputs, targets = torch.randn(8, 3), torch.arange(8) % 3
    minimised, reported = losses.for_task("classification", weight=torch.tensor([1.0, 2.0, 3.0]))
    plain = torch.nn.functional.cross_entropy(outputs, targets)
    assert reported(outputs, targets) == plain != minimised(outputs, targets)
    minimised, reported = losses.for_task("multilabel", weight=torch.tensor([2.0, 2.0, 2.0]))
    several = (outputs > 0).float()
    plain = torch.nn.functional.binary_cross_entropy_with_logits(outputs, several)
    assert reported(outputs, several) == plain != minimised(outputs, several)
