"""Oracles: SOAP of pytorch_optimizer, torch's Adam, and what a rotation of the problem must not change."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import nn

from trainwell.errors import InputError
from trainwell.optim import schedules
from trainwell.optim.rules import SGD, Adam
from trainwell.optim.soap import SOAP

DOUBLE = torch.float64
OTHERS = {
    "precondition_1d": "precondition_1d",
    "max_precond_dim": "max_precondition_dim",
    "normalize_grads": "normalize_gradient",
}


def gradient(shape: tuple[int, ...], step: int, place: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1000 * place + step))


def train(optimizer: torch.optim.Optimizer, steps: int, start: int = 0, pull: float = 0.3) -> list[torch.Tensor]:
    """Steps with gradients that hang on the step and on the parameters; returns these."""
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(start, start + steps):
        for i, p in enumerate(everything):
            p.grad = (pull * p.detach() + gradient(p.shape, step, i)).to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in everything]


def begin(*shapes: tuple[int, ...], dtype: torch.dtype = DOUBLE) -> list[nn.Parameter]:
    return [nn.Parameter(gradient(shape, 99, 7 + i).to(dtype)) for i, shape in enumerate(shapes)]


# ---------------------------------------------------------------------- the same as another's


CONFIGURATIONS: list[tuple[list[tuple[int, ...]], dict[str, Any]]] = [
    ([(6, 4), (3, 5), (5, 5)], {}),
    ([(6, 4), (3, 5)], {"betas": (0.9, 0.99), "lr": 0.02, "weight_decay": 0.3, "eps": 1e-4}),
    ([(6, 4)], {"shampoo_beta": 0.8}),
    ([(6, 4)], {"precondition_frequency": 3}),
    ([(6, 4)], {"precondition_frequency": 1, "correct_bias": False}),
    ([(6, 4)], {"normalize_grads": True}),
    ([(4, 3, 5), (2, 3, 3, 2), (3, 2, 1, 1)], {}),
    ([(4, 3, 5), (2, 3, 3, 2), (12, 2)], {"max_precond_dim": 10, "merge_dims": True}),
    ([(12, 5), (5, 12), (12, 11)], {"max_precond_dim": 10}),
    ([(8,), (1,), ()], {}),
    ([(8,), (1,), ()], {"precondition_1d": False}),
    ([(12,), (7,)], {"max_precond_dim": 10}),
    ([(5, 3)], {"maximize": True}),
]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize(("shapes", "options"), CONFIGURATIONS, ids=str)
def test_it_is_pytorch_optimizers(shapes: list[tuple[int, ...]], options: dict[str, Any], dtype: torch.dtype) -> None:
    others = {OTHERS.get(name, name): value for name, value in ({"precondition_1d": True} | options).items()}
    ours = SOAP(begin(*shapes, dtype=dtype), **options)
    theirs = pytorch_optimizer.SOAP(begin(*shapes, dtype=dtype), **others)
    for x, y in zip(train(ours, 35), train(theirs, 35), strict=True):
        # theirs makes its QR decomposition in float32, whatever the parameters are in
        torch.testing.assert_close(x, y, rtol=0, atol=2e-6 if dtype == torch.float32 else 5e-7)


def test_until_the_first_refresh_it_is_pytorch_optimizers_in_float64() -> None:
    shapes = [(6, 4), (3, 5), (4, 3, 5), (8,)]
    ours, theirs = SOAP(begin(*shapes)), pytorch_optimizer.SOAP(begin(*shapes), precondition_1d=True)
    for x, y in zip(train(ours, 10), train(theirs, 10), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


def test_where_nothing_is_turned_it_is_torchs_adam_one_step_later() -> None:
    ours = SOAP(begin((4, 3), (5,)), lr=0.1, eps=0.0, weight_decay=0.0, max_precond_dim=1)
    theirs = torch.optim.Adam(begin((4, 3), (5,)), lr=0.1, betas=(0.95, 0.95), eps=0.0)
    first = [p.detach().clone() for p in ours.param_groups[0]["params"]]
    for before, after in zip(first, train(ours, 1), strict=True):
        assert torch.equal(before, after)
    for x, y in zip(train(ours, 20, start=1), train(theirs, 20, start=1), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


def test_dimensions_that_are_joined_are_a_vector() -> None:
    kernel, (vector,) = begin((2, 3, 2))[0], begin((12,))
    vector.data = kernel.detach().reshape(12).clone()
    as_kernel, as_vector = SOAP([kernel], merge_dims=True, max_precond_dim=12), SOAP([vector])
    for step in range(25):
        kernel.grad = gradient((2, 3, 2), step)
        vector.grad = kernel.grad.reshape(12).clone()
        as_kernel.step()
        as_vector.step()
    assert as_kernel.state[kernel]["basis_0"].shape == (12, 12)
    assert torch.equal(kernel.reshape(12), vector)


def test_a_basis_is_orthogonal_and_after_many_refreshes_that_of_the_covariance() -> None:
    (p,) = begin((7, 5))
    optimizer = SOAP([p], precondition_frequency=1, shampoo_beta=0.9, lr=0.0)
    scale = torch.logspace(0, -2, 7, dtype=DOUBLE)[:, None] * torch.logspace(0, -1, 5, dtype=DOUBLE)
    for step in range(60):
        p.grad = gradient((7, 5), step % 2) * scale
        optimizer.step()
    for side, n in enumerate(p.shape):
        basis, covariance = (optimizer.state[p][f"{name}_{side}"] for name in ("basis", "covariance"))
        torch.testing.assert_close(basis.T @ basis, torch.eye(n, dtype=DOUBLE))
        values = torch.linalg.eigvalsh(covariance).flip(0)[:4]
        torch.testing.assert_close((basis.T @ covariance @ basis).diag()[:4], values, rtol=0.05, atol=0)


# ---------------------------------------------------------------------- rotation


def rotation(n: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(gradient((n, n), seed, 5))[0]


Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def path(make: Make, start: torch.Tensor, slope: Callable[[torch.Tensor], torch.Tensor], steps: int) -> torch.Tensor:
    p = nn.Parameter(start.clone())
    optimizer, places = make([p]), []
    for _ in range(steps):
        p.grad = slope(p.detach())
        optimizer.step()
        places.append(p.detach().clone())
    return torch.stack(places)


@pytest.mark.parametrize("frequency", [1, 10])
def test_square_matrices_go_the_same_way_however_the_problem_is_turned(frequency: int) -> None:
    """From the first gradient on, their covariances have one set of eigenvectors, which turns with the problem."""
    a, b = torch.logspace(0, -2, 6, dtype=DOUBLE).diag(), torch.logspace(0, -2, 6, dtype=DOUBLE).diag()
    left, right, start = rotation(6, 1), rotation(6, 2), gradient((6, 6), 4)

    def deviation(make: Make) -> float:
        straight = path(make, start, lambda w: a @ w @ b, 200)
        turned_a, turned_b = left @ a @ left.T, right @ b @ right.T
        turned = path(make, left @ start @ right.T, lambda w: turned_a @ w @ turned_b, 200)
        return float((left.T @ turned @ right - straight).abs().max())

    assert deviation(lambda p: SOAP(p, lr=0.03, weight_decay=0.0, precondition_frequency=frequency)) < 1e-6
    assert deviation(lambda p: Adam(p, lr=0.03)) > 0.5


def test_vectors_go_nearly_the_same_way_and_are_cured_of_turned_bad_conditioning() -> None:
    """Nearly: the first gradient has one direction alone, and the axes across it are anyone's until more are seen."""
    n, steps = 10, 100
    values, turn, start = torch.logspace(0, -4, n, dtype=DOUBLE), rotation(n, 0), gradient((n,), 3)
    hessian = turn @ values.diag() @ turn.T

    def both(make: Make) -> tuple[float, float, float]:
        straight = path(make, start, lambda x: values * x, steps)
        turned = path(make, turn @ start, lambda x: hessian @ x, steps) @ turn
        first, second = ((0.5 * values * places[-1] ** 2).sum().item() for places in (straight, turned))
        return float((turned - straight).norm(dim=1).max() / start.norm()), first, second

    apart, straight, turned = both(lambda p: SGD(p, lr=1.0))
    assert apart < 1e-12
    assert turned == pytest.approx(straight, rel=1e-10)
    apart, straight, turned = both(lambda p: Adam(p, lr=0.03))
    assert apart > 0.5
    assert turned > 100 * straight
    apart, straight, turned = both(lambda p: SOAP(p, lr=0.03, weight_decay=0.0))
    assert 1e-3 < apart < 0.35
    assert 0.5 < turned / straight < 2
    apart, straight, turned = both(lambda p: SOAP(p, lr=0.03, weight_decay=0.0, precondition_1d=False))
    assert apart > 0.5
    assert turned > 3 * straight


# ---------------------------------------------------------------------- what is no number, half precision


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("when", [0, 1, 9, 10])
def test_a_gradient_that_is_no_number_makes_its_parameter_none_and_raises_nothing(when: int, bad: float) -> None:
    sick, well = begin((3, 4), (3, 4))
    optimizer = SOAP([sick, well])
    for step in range(13):
        for p in (sick, well):
            p.grad = gradient((3, 4), step)
        if step == when:
            assert sick.isfinite().all()
            sick.grad[1, 2] = bad  # type: ignore[index]
        optimizer.step()
    assert sick.isnan().all()
    assert well.isfinite().all()


def test_where_eigh_does_not_converge_it_is_tried_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    eigh, tried = torch.linalg.eigh, []

    def failing(x: torch.Tensor) -> Any:
        tried.append(x.dtype)
        if x.dtype == torch.float32:
            raise torch.linalg.LinAlgError("failed to converge")
        return eigh(x)

    expected = train(SOAP(begin((4, 4), dtype=torch.float32)), 5)
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    torch.testing.assert_close(train(SOAP(begin((4, 4), dtype=torch.float32)), 5), expected)
    assert tried == [torch.float32, DOUBLE] * 2


def test_gradients_of_zero_move_nothing() -> None:
    (p,) = begin((3, 4))
    before, optimizer = p.detach().clone(), SOAP([p], weight_decay=0.0)
    for _ in range(12):
        p.grad = torch.zeros(3, 4, dtype=DOUBLE)
        optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_its_state_in_float32_after_loading_too(dtype: torch.dtype) -> None:
    going = SOAP(begin((5, 4), (6,), dtype=dtype), lr=0.05)
    middle = train(going, 12)
    assert {x.dtype for values in going.state.values() for x in values.values()} == {torch.float32}
    params = [nn.Parameter(p.clone()) for p in middle]
    loaded = SOAP(params)
    loaded.load_state_dict(copy.deepcopy(going.state_dict()))
    for x, y in zip(train(loaded, 12, start=12), train(going, 12, start=12), strict=True):
        assert x.dtype == dtype
        assert torch.equal(x, y)


def test_half_precision_goes_the_way_of_float32() -> None:
    half, full = (train(SOAP(begin((4, 4), dtype=dtype), lr=0.05), 24)[0] for dtype in (torch.bfloat16, torch.float32))
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.1)


# ---------------------------------------------------------------------- as every optimizer of ours


def test_a_state_that_was_written_and_read_steps_on_to_the_bit() -> None:
    shapes: list[tuple[int, ...]] = [(5, 5), (4, 3, 2, 2), (6,), ()]
    rate = schedules.cosine(0.05, steps=60)
    going = SOAP(begin(*shapes, dtype=torch.float32), lr=rate)
    kernel = going.param_groups[0]["params"][1]
    kernel.data = kernel.data.to(memory_format=torch.channels_last)
    middle, twin = train(going, 25), copy.deepcopy(going)
    state = going.state_dict()
    state["state"] = {  # a file has the values alone, not how they lay in memory
        i: {name: x.clone(memory_format=torch.contiguous_format) for name, x in values.items()}
        for i, values in state["state"].items()
    }
    state = copy.deepcopy(state)
    reader = SOAP([nn.Parameter(p.clone(memory_format=torch.preserve_format)) for p in middle], lr=rate)
    reader.load_state_dict(state)
    end = train(going, 25, start=25)
    for other in (reader, twin):
        for x, y in zip(train(other, 25, start=25), end, strict=True):
            assert torch.equal(x, y)


def test_names_carry_a_state_into_other_groups() -> None:
    first, second = begin((4, 3), (5,))
    going = SOAP([("weight", first), ("bias", second)])
    train(going, 12)
    turned = [nn.Parameter(second.detach().clone()), nn.Parameter(first.detach().clone())]
    other = SOAP([{"params": [("bias", turned[0])]}, {"params": [("weight", turned[1])]}])
    other.load_state_dict(going.state_dict())
    for mine, theirs in ((first, turned[1]), (second, turned[0])):
        mine.grad, theirs.grad = gradient(mine.shape, 50), gradient(mine.shape, 50)
    going.step()
    other.step()
    assert torch.equal(first, turned[1])
    assert torch.equal(second, turned[0])


def test_groups_schedules_closures_and_parameters_that_rest() -> None:
    moved, slow, resting = begin((3, 3), (3, 3), (3, 3))
    empty = nn.Parameter(torch.zeros(0, 3, dtype=DOUBLE))
    groups = [{"params": [moved, resting, empty]}, {"params": [slow], "lr": 0.0}]
    optimizer = SOAP(groups, lr=schedules.linear(0.1, steps=4), betas=(schedules.linear(0.9, steps=4, final=0.8), 0.95))
    slow_before = slow.detach().clone()

    def closure() -> float:
        optimizer.zero_grad()
        loss = (moved**2).sum() + (slow**2).sum() + empty.sum()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(4)]
    assert losses[0] == losses[1] > losses[2] > losses[3]  # type: ignore[operator]
    assert torch.equal(slow, slow_before)
    assert resting not in optimizer.state
    np.testing.assert_allclose(optimizer.param_groups[0]["lr"], 0.1 / 4)
    np.testing.assert_allclose(optimizer.param_groups[0]["betas"][0], 0.825)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "Invalid lr value: -1.0"),
        ({"lr": [0.1, 0.2]}, "lr is a list: SOAP takes one value"),
        ({"betas": ([0.9, 0.8], 0.95)}, "betas is a list"),
        ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1"),
        ({"shampoo_beta": 1.0}, "shampoo_beta is 1.0"),
        ({"eps": -1.0}, "Invalid eps value"),
        ({"precondition_frequency": 0}, "precondition_frequency is 0"),
        ({"precondition_frequency": 2.5}, "precondition_frequency is 2.5"),
        ({"max_precond_dim": 0}, "max_precond_dim is 0"),
        ({"differentiable": True}, "cannot be differentiated"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        SOAP(begin((2, 3)), **options)
    assert "\n" not in str(caught.value)


def test_complex_parameters_and_sparse_gradients_are_refused() -> None:
    number, sparse = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64)), nn.Parameter(torch.ones(2, 2))
    number.grad, sparse.grad = torch.ones_like(number), torch.ones(2, 2).to_sparse()
    for p, words in ((number, "complex parameters"), (sparse, "sparse gradients")):
        with pytest.raises(InputError, match=f"SOAP does not support {words}"):
            SOAP([p]).step()
