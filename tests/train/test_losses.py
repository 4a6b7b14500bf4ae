import numpy as np
import torch
from sklearn.metrics import log_loss, mean_squared_error

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
