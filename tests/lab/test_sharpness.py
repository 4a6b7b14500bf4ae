"""Sharpness: against dense Hessians and closed forms, and leaving everything as it was."""

import copy
import random
import re

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from trainwell import InputError, progress
from trainwell.lab import hessian, sharpness
from trainwell.models import resnet8
from trainwell.regularize import DropConnect, Dropout, FractionalMaxPool2d


def net(width=20, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)


def rows(count=50, dtype=torch.float32, features=6):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, features, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(0, 3, (count,), generator=generator)


def cut(inputs, targets, *lengths):
    return list(zip(inputs.split(lengths), targets.split(lengths), strict=True))


def dense(model, inputs, targets, loss=F.cross_entropy):
    """Returns the whole Hessian by torch's own function, of the model in evaluation."""
    model = copy.deepcopy(model).eval()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    sizes = [parameter.numel() for parameter in named.values()]

    def mean_loss(flat):
        parts = {name: part.view_as(named[name]) for name, part in zip(named, flat.split(sizes), strict=True)}
        return loss(functional_call(model, parts, (inputs,)), targets)

    flat = torch.cat([parameter.detach().flatten() for parameter in named.values()])
    return torch.autograd.functional.hessian(mean_loss, flat).double().numpy()


# ---------------------------------------------------------------------- eigenvalues


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 20], ids=["13 numbers", "243 numbers"])
def test_eigenvalues_are_those_of_the_whole_hessian(width, dtype, k):
    model, (inputs, targets) = net(width, dtype), rows(dtype=dtype)
    values = np.linalg.eigvalsh(dense(model, inputs, targets))[::-1]
    found = sharpness(model, cut(inputs, targets, 7, 30, 13), k=k, probes=2)
    np.testing.assert_allclose(found.eigenvalues, values[:k], rtol=1e-3)
    assert (found.samples, found.parameters) == (50, len(values))


def test_batches_of_any_length_are_one_pair():
    model, pair = net(dtype=torch.float64), rows(dtype=torch.float64)
    whole = sharpness(model, pair, k=2)
    for data in (cut(*pair, 1, 40, 9), [list(batch) for batch in cut(*pair, 25, 25)]):
        pieces = sharpness(model, data, k=2)
        np.testing.assert_allclose(pieces.eigenvalues, whole.eigenvalues, rtol=1e-6)
        np.testing.assert_allclose(pieces[1:4], whole[1:4], rtol=1e-9)
    assert not np.allclose(sharpness(model, cut(*pair, 25, 25)[0]).eigenvalues, whole.eigenvalues[:1], rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_squared_errors_of_a_linear_model_have_a_closed_form(dtype):
    """With `c` outputs the Hessian is 2/(nc) X^T X, `c` times: equal eigenvalues count as often as they are there."""
    inputs = rows(40, dtype, features=15)[0]
    values, pair = np.linalg.eigvalsh((inputs.T @ inputs).double().numpy())[::-1], (inputs, inputs[:, :5] + 1)
    one = sharpness(nn.Linear(15, 1, bias=False, dtype=dtype), (inputs, inputs[:, :1]), loss=F.mse_loss, k=4)
    np.testing.assert_allclose(one.eigenvalues, 2 / 40 * values[:4], rtol=1e-5)
    several = sharpness(nn.Linear(15, 5, bias=False, dtype=dtype), pair, loss=F.mse_loss, k=12)
    np.testing.assert_allclose(several.eigenvalues, 2 / 200 * np.repeat(values, 5)[:12], rtol=1e-4)
    assert several.trace_low < 2 / 40 * values.sum() < several.trace_high


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_eigenvalues_of_zero_are_found(dtype):
    """The inputs are along two directions of 40, so that all but two eigenvalues are 0."""
    torch.manual_seed(0)
    inputs = (torch.randn(30, 2, dtype=torch.float64) @ torch.randn(2, 40, dtype=torch.float64)).to(dtype)
    values = np.linalg.eigvalsh(2 / 30 * (inputs.T @ inputs).double().numpy())[::-1]
    model = nn.Linear(40, 1, bias=False, dtype=dtype)
    found = sharpness(model, (inputs, inputs[:, :1]), loss=F.mse_loss, k=4)
    np.testing.assert_allclose(found.eigenvalues, values[:4], rtol=1e-4, atol=1e-5 * values[0])
    flat = sharpness(model, (inputs, inputs[:, :1]), loss=lambda outputs, _: outputs.mean(), k=4)
    assert flat[:4] == ([0.0] * 4, 0, 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_a_direction_that_signs_miss(seed):
    """Half of all vectors of signs are orthogonal to it."""
    inputs = torch.zeros(1, 30)
    inputs[0, 3], inputs[0, 17] = 1, -1
    found = sharpness(nn.Linear(30, 1, bias=False), (inputs, inputs[:, :1]), loss=F.mse_loss, seed=seed)
    np.testing.assert_allclose(found.eigenvalues, [4], rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_eigenvalues_beside_large_negative_ones(dtype):
    torch.manual_seed(0)
    inputs = torch.linalg.qr(torch.randn(100, 100, dtype=torch.float64))[0].to(dtype)
    scales = torch.tensor([0.01] + 89 * [0.0] + 10 * [-5.0], dtype=dtype)[:, None]
    found = sharpness(nn.Linear(100, 1, dtype=dtype, bias=False), (inputs, scales), loss=weighted_squares, k=3)
    np.testing.assert_allclose(found.eigenvalues, [2e-4, 0, 0], atol=1e-7)


def weighted_squares(outputs, weights):
    return (weights * outputs**2).mean()


# ---------------------------------------------------------------------- the trace


def test_the_interval_holds_the_trace():
    model, pair = net(), rows()
    trace, found = np.trace(dense(model, *pair)), sharpness(model, pair, probes=200)
    assert found.trace_low < trace < found.trace_high
    assert found.trace_low < found.trace < found.trace_high
    assert found.trace_high - found.trace_low < 0.3 * trace


def test_the_interval_holds_the_trace_in_95_of_100_seeds(monkeypatch):
    monkeypatch.setattr(hessian._Hessian, "largest", lambda *_: [0.0])  # which would take most of the time
    model, pair = net(), rows()
    trace = np.trace(dense(model, *pair))
    found = [sharpness(model, pair, probes=16, seed=seed) for seed in range(200)]
    held = sum(each.trace_low <= trace <= each.trace_high for each in found)
    assert stats.binom.ppf(1e-3, 200, 0.95) <= held <= stats.binom.ppf(1 - 1e-3, 200, 0.95)


def test_the_interval_is_students(monkeypatch):
    forms, taken = hessian._Hessian.forms, []
    monkeypatch.setattr(hessian._Hessian, "forms", lambda self, n: taken.append(forms(self, n)) or taken[0])
    found = sharpness(net(), rows(), probes=5)
    assert len(taken[0]) == 5
    expected = stats.t.interval(0.95, 4, loc=np.mean(taken[0]), scale=stats.sem(taken[0]))
    np.testing.assert_allclose((found.trace_low, found.trace_high), expected)
    np.testing.assert_allclose(found.trace, np.mean(taken[0]))


def test_probes_are_signs():
    """Of a diagonal Hessian they give the trace without an error, as no other probes do."""
    inputs = torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))
    model = nn.Linear(100, 1, bias=False, dtype=torch.float64)
    found = sharpness(model, (inputs, inputs[:, :1]), loss=F.mse_loss, probes=3)
    np.testing.assert_allclose(found[1:4], [2 / 100 * (inputs**2).sum()] * 3)


def test_a_seed_gives_the_same_bits_and_another_others():
    model, pair = net(), rows()
    first = sharpness(model, pair, k=2)
    assert sharpness(model, pair, k=2) == first
    other = sharpness(model, pair, k=2, seed=1)
    assert other.trace != first.trace
    np.testing.assert_allclose(other.eigenvalues, first.eigenvalues, rtol=1e-3)


def test_scipy_does_not_draw_without_a_seed(monkeypatch):
    drawn = np.random.default_rng

    def seeded(seed=None):
        assert seed is not None
        return drawn(seed)

    monkeypatch.setattr(np.random, "default_rng", seeded)
    sharpness(net(), rows(), k=2)


# ---------------------------------------------------------------------- what it means


def test_a_rescaled_relu_network_is_the_same_function_and_has_other_figures():
    torch.manual_seed(0)
    model, pair = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).double(), rows(dtype=torch.float64)
    outputs, before = model(pair[0]), sharpness(model, pair)
    with torch.no_grad():
        model[0].weight *= 8
        model[0].bias *= 8
        model[2].weight /= 8
    after = sharpness(model, pair)
    torch.testing.assert_close(model(pair[0]), outputs)
    assert after.eigenvalues[0] > 4 * before.eigenvalues[0]
    assert after.trace_low > 4 * before.trace_high


def test_it_prints_as_lines():
    found = hessian.Sharpness([12.34567, 1.0], 45.6, 40.12, 51.0, 512, 78042)
    assert str(found).splitlines() == [
        "2 largest eigenvalues: 12.35, 1",
        "trace: 45.6 (95 % interval 40.12 to 51)",
        "of the Hessian of the mean loss of 512 samples, by 78042 parameters",
    ]
    assert str(found._replace(eigenvalues=[2.0])).startswith("largest eigenvalue: 2\n")


# ---------------------------------------------------------------------- nothing is changed


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def loader(pair, **options):
    return DataLoader(TensorDataset(*pair), batch_size=8, shuffle=True, **options)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(training):
    model, pair, generator = net().train(training), rows(), torch.Generator().manual_seed(5)
    model[1].train(not training)
    model[3].weight.grad = torch.ones(3, 20)
    model(pair[0])
    before, modes, drawn = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()], states()
    gradient = model[3].weight.grad
    sharpness(model, loader(pair, generator=generator), probes=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model[3].weight.grad is gradient
    assert torch.equal(gradient, torch.ones(3, 20))
    assert model[0].weight.grad is None
    assert states() == drawn
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(5).get_state())


def test_nor_by_an_error():
    model, drawn, calls = net().train(), states(), []

    def fails(outputs, targets):
        calls.append(torch.rand(()))
        if len(calls) == 5:
            raise RuntimeError("in the middle")
        return F.cross_entropy(outputs, targets)

    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_pre_hook(lambda model, _: model.calls.add_(1) and None)
    with pytest.raises(RuntimeError, match="in the middle"):
        sharpness(model, cut(*rows(), 20, 30), loss=fails)
    assert all(module.training for module in model.modules())
    assert model.calls == 0
    assert states() == drawn


def test_the_model_is_in_evaluation():
    plain, pair = net(), rows()
    plain(pair[0])  # so that batch norm's statistics are those of no batch
    noisy = nn.Sequential(plain[0], plain[1], nn.Dropout(0.5), Dropout(0.5), *plain[2:]).train()
    values = np.linalg.eigvalsh(dense(plain, *pair))[::-1]
    found = sharpness(noisy, pair)
    np.testing.assert_allclose(found.eigenvalues, values[:1], rtol=1e-3)
    assert found == sharpness(plain.eval(), pair)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same(mode):
    model, pair = net(), rows()
    with mode():
        found = sharpness(model, pair, probes=2)
        assert not (model[0].weight * 1).requires_grad
    assert found == sharpness(model, pair, probes=2)


# ---------------------------------------------------------------------- which parameters, which data


def test_frozen_parameters_do_not_count():
    model, pair = net(), rows()
    for parameter in model[:2].parameters():
        parameter.requires_grad_(False)
    matrix, found = dense(model, *pair), sharpness(model, pair, probes=200)
    assert found.parameters == 63 == len(matrix)
    np.testing.assert_allclose(found.eigenvalues, [np.linalg.eigvalsh(matrix)[-1]], rtol=1e-3)
    assert found.trace_low < np.trace(matrix) < found.trace_high
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 4 + [True] * 2


def test_chosen_parameters_are_a_block_of_the_hessian():
    model, pair = net(), rows()
    block = dense(model, *pair)[180:, 180:]  # the last layer, after 120 + 20 + 20 + 20 numbers
    found = sharpness(model, pair, parameters=[*model[3].parameters(), model[3].weight])
    assert found.parameters == 63
    np.testing.assert_allclose(found.eigenvalues, [np.linalg.eigvalsh(block)[-1]], rtol=1e-3)


def test_parameters_that_the_loss_does_not_see_are_flat():
    model, pair = net(), rows()
    found = sharpness(model, pair, probes=2)
    model.register_parameter("unused", nn.Parameter(torch.ones(5)))
    more = sharpness(model, pair, probes=2)
    assert more.parameters == found.parameters + 5
    np.testing.assert_allclose(more.eigenvalues, found.eigenvalues, rtol=1e-3)


def test_a_shuffled_loader_is_the_same_in_each_pass():
    model, pair = net(dtype=torch.float64), rows(dtype=torch.float64)
    found, whole = sharpness(model, loader(pair)), sharpness(model, pair)
    np.testing.assert_allclose(found.eigenvalues, whole.eigenvalues, rtol=1e-6)
    np.testing.assert_allclose(found[1:4], whole[1:4], rtol=1e-9)
    dropping = sharpness(model, loader(pair, drop_last=True, generator=torch.Generator().manual_seed(3)))
    assert dropping.samples == 48


def test_data_that_change_are_refused():
    generator, (inputs, targets) = np.random.default_rng(0), rows()

    class Augmented(list):
        def __iter__(self):
            return ((x + torch.from_numpy(generator.normal(size=x.shape)).float(), y) for x, y in super().__iter__())

    with pytest.raises(InputError, match="without random augmentation"):
        sharpness(net(), Augmented(cut(inputs, targets, 20, 30)))


class Passes:
    """Other batches in each pass."""

    def __init__(self, *batches):
        self.batches = iter(batches)

    def __iter__(self):
        return iter(next(self.batches))


# ---------------------------------------------------------------------- models


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.outer(self.inner(inputs)[0][:, -1])


@pytest.mark.parametrize("kind", ["attention", "recurrent"])
def test_attention_and_recurrent_layers(kind):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(30, 3)) if kind == "attention" else Recurrent()
    pair = torch.randn(9, 5, 6), torch.arange(9) % 3
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        matrix = dense(model, *pair)
    found = sharpness(model, pair, k=2, probes=100)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(matrix)[:-3:-1], rtol=1e-3)
    assert found.trace_low < np.trace(matrix) < found.trace_high


def test_sparse_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 3, sparse=True), nn.Tanh(), nn.Linear(3, 3))
    pair = torch.arange(9) % 7, torch.arange(9) % 3
    found = sharpness(model, pair)
    model[0].sparse = False
    np.testing.assert_allclose(found.eigenvalues, [np.linalg.eigvalsh(dense(model, *pair))[-1]], rtol=1e-3)


def test_our_noise_layers_are_their_average():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), FractionalMaxPool2d(0.6), nn.Tanh(), nn.Flatten(), Dropout(0.3),
        DropConnect(nn.Linear(18, 3), p=0.4),
    ).train()  # fmt: skip
    pair = torch.randn(10, 1, 7, 7), torch.arange(10) % 3
    found = sharpness(model, pair, k=2)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(dense(model, *pair))[:-3:-1], rtol=1e-3)


def test_torchs_own_fractional_pooling_draws_the_same_in_each_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.FractionalMaxPool2d(2, output_ratio=0.6), nn.Flatten(), nn.Linear(16, 3))
    pair = torch.randn(10, 1, 7, 7), torch.arange(10) % 3
    first = sharpness(model, pair)
    torch.manual_seed(1)
    assert sharpness(model, pair) == first


def test_our_residual_network():
    torch.manual_seed(0)
    model = resnet8(num_classes=3, in_chans=1, width=1, drop_rate=0.1, drop_path_rate=0.1)
    pair = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    found = sharpness(model, pair, k=2, probes=50)
    matrix = dense(model, *pair)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(matrix)[:-3:-1], rtol=1e-3)
    assert found.trace_low < np.trace(matrix) < found.trace_high


# ---------------------------------------------------------------------- what is told


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


class CheckpointedLayer(nn.Linear):
    def forward(self, x):
        return checkpoint(torch.tanh, super().forward(x), use_reentrant=True)


class OnceLayer(nn.Linear):
    def forward(self, x):
        return Once.apply(super().forward(x)) ** 2


def root(outputs, targets):
    return (outputs * 0).norm()


X, Y = rows()
BAD = [
    ({"data": X}, "data is a Tensor: give a pair of tensors"),
    ({"data": 3}, "data is a int"),
    ({"data": TensorDataset(X, Y)}, "data is a TensorDataset.* as a list or a DataLoader"),
    ({"data": iter([(X, Y)])}, "can be gone through once: give a list or a DataLoader"),
    ({"data": []}, "there are no batches"),
    ({"data": Passes([])}, "there are no batches: give data that can be gone through again"),
    ({"data": Passes([(X, Y)], [])}, "data are 0 rows of mean loss 0, and were 50 of 1.*: give what is the same each"),
    ({"data": Passes([(X, Y)] * 2, [(X, Y)])}, r"data are 50 rows of mean loss (\S+), and were 100 of \1 before"),
    ({"data": [X, Y, Y]}, "a batch must be a pair of tensors, inputs and targets, not a Tensor"),
    ({"data": [(X, Y.numpy())]}, "a batch must be a pair of tensors"),
    ({"data": (X, torch.tensor(1))}, "with the rows first"),
    ({"data": (X, Y[1:])}, "a batch has 50 inputs and 49 targets"),
    ({"data": (X[:0], Y[:0])}, "a batch has 0 inputs and 0 targets: give as many, at least one"),
    ({"data": (X * torch.nan, Y)}, "the loss is nan: see whether inputs, targets and parameters are finite"),
    ({"data": [(X, Y), (X * torch.inf, Y)]}, "the loss is nan"),
    ({"model": F.relu}, "model is a function: it is to be a torch.nn.Module"),
    ({"model": nn.Tanh()}, "there is no parameter that requires a gradient"),
    ({"model": net().requires_grad_(False)}, "there is no parameter that requires a gradient"),
    ({"model": nn.Linear(6, 3, dtype=torch.complex64)}, "a parameter is complex64: it is to be float32 or float64"),
    ({"model": nn.Linear(6, 3, dtype=torch.bfloat16)}, "a parameter is bfloat16: it is to be float32 or float64"),
    ({"model": nn.LazyLinear(3)}, "parameters without a shape yet: call it once before"),
    ({"model": OnceLayer(6, 3)}, "cannot be differentiated twice: a function in the model is marked with @once"),
    ({"model": CheckpointedLayer(6, 3)}, r"cannot be differentiated twice \(.*reentrant.*: take out what says so"),
    ({"parameters": []}, "there is no parameter that requires a gradient"),
    ({"parameters": net().named_parameters()}, "parameters holds a tuple: give tensors, as model.parameters"),
    ({"parameters": [nn.Parameter(torch.ones(2))]}, "the loss depends on none of the parameters"),
    ({"loss": lambda outputs, _: outputs.detach().mean()}, "the loss depends on none of the parameters"),
    ({"loss": lambda outputs, _: outputs.sum(1)}, "one number, the mean over the batch"),
    ({"loss": lambda outputs, _: 1.0}, "one number, the mean over the batch"),
    ({"loss": root}, "the second derivative of the loss is not finite"),
    ({"k": 0}, "k is 0: it is a whole number from 1 to 243"),
    ({"k": 244}, "k is 244"),
    ({"k": 1.0}, "k is 1.0"),
    ({"probes": 1}, "probes is 1: it is a whole number, at least 2"),
    ({"tolerance": 0.0}, "tolerance is 0.0: it is above 0 and below 1"),
    ({"tolerance": float("nan")}, "tolerance is nan"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        sharpness(**{"model": net(), "data": (X, Y), "probes": 2, **arguments})
    assert "\n" not in str(error.value)


def test_as_many_eigenvalues_as_parameters():
    inputs = X[:, :2].double()
    found = sharpness(nn.Linear(2, 1, bias=False).double(), (inputs, inputs[:, :1]), loss=F.mse_loss, k=2)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(2 / 50 * inputs.T @ inputs)[::-1])


def test_eigenvalues_that_do_not_settle_are_told(monkeypatch):
    monkeypatch.setattr(hessian, "_MOST_RESTARTS", 1)
    with pytest.raises(InputError, match="do not settle to a tolerance of 1e-15: raise it, or give the model and the"):
        sharpness(net(40), rows(500), tolerance=1e-15, k=9)


def test_progress_is_shown_unless_quiet(monkeypatch, capsys):
    now = iter(range(0, 10**6, 3))  # three seconds pass between two looks at the clock
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    sharpness(net(), cut(*rows(), 25, 25), probes=8, quiet=True)
    assert capsys.readouterr() == ("", "")
    sharpness(net(), cut(*rows(), 25, 25), probes=8)
    said = capsys.readouterr().err
    assert re.search(r"^estimating the trace: \d+ of 16$", said, re.MULTILINE)
    assert re.search(r"^finding eigenvalues, of at most: \d+ of \d+$", said, re.MULTILINE)
