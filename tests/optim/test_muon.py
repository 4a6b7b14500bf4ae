"""Oracles: torch.optim.Muon and AdamW, and singular values by LAPACK."""

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_table import optim_db
from trainwell.errors import InputError
from trainwell.optim import schedules
from trainwell.optim.muon import Muon, orthogonalized

INFO = next(info for info in optim_db if info.optim_cls is torch.optim.Muon)
CONFIGURATIONS = [dict(each.kwargs) for each in INFO.optim_inputs_func("cpu")] + [
    {"adjust_lr_fn": "match_rms_adamw", "lr": 0.01},
    {"adjust_lr_fn": "original", "nesterov": False},
    {"weight_decay": 0.0, "momentum": 0.0, "ns_steps": 0},
]
SHAPES = [(6, 4), (3, 7), (5, 5), (1, 4), (4, 1)]
USUAL = (3.4445, -4.7750, 2.0315)


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def train(optimizer: torch.optim.Optimizer, steps: int, start: int = 0, scheduler: Any = None) -> list[torch.Tensor]:
    """Steps with gradients that hang on the step and on the parameters; returns these."""
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(start, start + steps):
        for i, p in enumerate(everything):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * i + step))
            p.grad = (0.3 * p.detach() + noise).to(p.dtype)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return [p.detach().clone() for p in everything]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor], most: float = 0.0) -> None:
    assert len(ours) == len(theirs)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=most)


# ---------------------------------------------------------------------- matrices: torch's Muon


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_matrices_step_as_in_torch_to_the_bit(options: dict[str, Any], dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not options.get("nesterov", True):
        options = {**options, "nesterov": True}  # without, torch 2.13 divides the momentum itself by its norm
    ours, theirs = parameters(SHAPES, dtype), parameters(SHAPES, dtype)
    first, second = Muon(ours, **copy.deepcopy(options)), torch.optim.Muon(theirs, **options)
    in_float32 = isinstance(options.get("lr"), torch.Tensor)  # torch's 1 - lr * weight_decay is, then
    most = {torch.bfloat16: 0.04, torch.float32: 2e-6, torch.float64: 2e-6}[dtype] if in_float32 else 0.0
    same(train(first, 12), train(second, 12), most)
    assert [set(first.state[p]) for p in ours] == [set(second.state[p]) for p in theirs] == [{"momentum_buffer"}] * 5
    buffers = [
        [optimizer.state[p]["momentum_buffer"] for p in params]
        for optimizer, params in ((first, ours), (second, theirs))
    ]
    same(*buffers, most)


def test_orthogonalising_leaves_the_momentum_as_it_is() -> None:
    (p,) = parameters([(3, 4)], torch.bfloat16)
    p.grad = torch.full_like(p, 8.0)
    optimizer = Muon([p], momentum=0.5, nesterov=False)
    optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].unique().tolist() == [4.0]


def test_defaults_and_their_places_are_torchs() -> None:
    ours = Muon(parameters([(2, 2)]), 0.02, 0.3, 0.9, False, (3.0, -4.0, 2.0), 1e-6, 4, "original")
    theirs = torch.optim.Muon(parameters([(2, 2)]), 0.02, 0.3, 0.9, False, (3.0, -4.0, 2.0), 1e-6, 4, "original")
    for name, value in theirs.defaults.items():
        assert ours.defaults[name] == value
    plain = Muon(parameters([(2, 2)])).defaults
    assert {name: plain[name] for name in theirs.defaults} == torch.optim.Muon(parameters([(2, 2)])).defaults


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_state_crosses_to_torch_and_back(ours_first: bool) -> None:
    kinds = (Muon, torch.optim.Muon) if ours_first else (torch.optim.Muon, Muon)
    going = kinds[0](parameters(SHAPES), lr=0.03, momentum=0.8)
    middle = train(going, 5)
    state = copy.deepcopy(going.state_dict())
    taking_over = kinds[1](parameters(SHAPES))
    for p, value in zip(taking_over.param_groups[0]["params"], middle, strict=True):
        p.data = value.clone()
    taking_over.load_state_dict(state)
    same(train(taking_over, 5, start=5), train(going, 5, start=5))


@pytest.mark.parametrize(
    "case", INFO.optim_error_inputs_func("cpu", torch.float32), ids=lambda case: case.optimizer_error_input.desc
)
def test_what_torch_refuses_is_refused_unless_the_companion_takes_it(case: Any) -> None:
    given_input = case.optimizer_error_input
    params = parameters([(2, 3)]) if given_input.params is None else given_input.params
    if given_input.desc == "only support 2D parameters":
        Muon(params).step()
        return
    if case.error_type is UserWarning:
        with pytest.warns(UserWarning, match=case.error_regex):
            Muon(params)
        return
    with pytest.raises((ValueError, TypeError), match=case.error_regex) as caught:
        Muon(params, **given_input.kwargs).step()
    assert "\n" not in str(caught.value)


def test_a_kernel_is_the_matrix_of_its_outputs_and_all_else() -> None:
    kernel, (flat,) = parameters([(6, 2, 3, 3)])[0], parameters([(6, 18)])
    flat.data = kernel.detach().flatten(1).clone()
    ours = Muon([kernel], lr=0.1, adjust_lr_fn="match_rms_adamw")
    theirs = torch.optim.Muon([flat], lr=0.1, adjust_lr_fn="match_rms_adamw")
    for layout in (torch.contiguous_format, torch.channels_last):
        gradient = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1))
        kernel.grad, flat.grad = gradient.to(memory_format=layout), gradient.flatten(1)
        ours.step()
        theirs.step()
        assert torch.equal(kernel.flatten(1), flat)


def test_schedules_are_lambda_lr_and_uphill_is_minus_the_gradient() -> None:
    rate = schedules.cosine(0.1, steps=10)
    with_torch = torch.optim.Muon(parameters(SHAPES), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(with_torch, rate)
    expected = train(with_torch, 8, scheduler=scheduler)
    same(train(Muon(parameters(SHAPES), lr=rate), 8), expected)

    down, up = (Muon(parameters([(3, 4)]), lr=0.1, weight_decay=0.0, maximize=uphill) for uphill in (False, True))
    start = parameters([(3, 4)])[0].detach()
    moved = []
    for optimizer in (down, up):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3, 4).cumsum(1)
        optimizer.step()
        moved.append(optimizer.param_groups[0]["params"][0].detach() - start)
    torch.testing.assert_close(moved[0], -moved[1])
    assert moved[1].sum() > 0


def test_a_schedule_of_the_momentum_is_the_number_written_into_torchs_group() -> None:
    momentum = schedules.linear(0.9, steps=8, final=0.5)
    theirs = torch.optim.Muon(parameters(SHAPES))
    for step in range(8):
        theirs.param_groups[0]["momentum"] = momentum(step)
        train(theirs, 1, start=step)
    same(train(Muon(parameters(SHAPES), momentum=momentum), 8), [p.detach() for p in theirs.param_groups[0]["params"]])


# ---------------------------------------------------------------------- Newton–Schulz: singular values


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), steps=st.integers(0, 8), seed=st.integers(0, 99))
def test_the_iteration_is_the_polynomial_of_the_singular_values(rows: int, columns: int, steps: int, seed: int) -> None:
    x = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    u, s, vt = np.linalg.svd(x.numpy(), full_matrices=False)
    s = s / np.linalg.norm(s)
    a, b, c = USUAL
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    np.testing.assert_allclose(orthogonalized(x, USUAL, steps).numpy(), u * s @ vt, rtol=0, atol=1e-10)


def test_five_steps_bring_singular_values_near_1_as_jordan_states() -> None:
    for condition in (1, 10, 100):
        x = torch.diag(torch.logspace(0, -math.log10(condition), 8, dtype=torch.float64))
        s = torch.linalg.svdvals(orthogonalized(x))
        assert s.max() < 1.21
        assert s.min() > (0.65 if condition < 100 else 0.3)


def test_in_its_own_precision_the_step_is_that_of_the_singular_values() -> None:
    (p,) = parameters([(5, 3)], torch.float64)
    w = p.detach().numpy().copy()
    v, lr, decay, momentum = np.zeros_like(w), 0.1, 0.2, 0.9
    optimizer = Muon([p], lr=lr, weight_decay=decay, momentum=momentum, ns_dtype="parameter")
    for step in range(10):
        g = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        p.grad = g.clone()
        optimizer.step()
        v = momentum * v + (1 - momentum) * g.numpy()
        u, s, vt = np.linalg.svd((1 - momentum) * g.numpy() + momentum * v, full_matrices=False)
        s = s / np.linalg.norm(s)
        for _ in range(5):
            s = USUAL[0] * s + USUAL[1] * s**3 + USUAL[2] * s**5
        w = w * (1 - lr * decay) - lr * math.sqrt(5 / 3) * (u * s @ vt)
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=0, atol=1e-10)


def test_bfloat16_differs_from_the_parameters_precision_by_its_rounding_alone() -> None:
    rough, fine = (train(Muon(parameters(SHAPES), lr=0.1, ns_dtype=kind), 1) for kind in ("bfloat16", "parameter"))
    for x, y in zip(rough, fine, strict=True):
        assert not torch.equal(x, y)
        torch.testing.assert_close(x, y, rtol=0, atol=0.1 * 0.05)


# ---------------------------------------------------------------------- the companion: AdamW


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_no_matrix_steps_by_adamw(dtype: torch.dtype) -> None:
    shapes: list[tuple[int, ...]] = [(7,), (), (1,)]
    ours = Muon(parameters(shapes, dtype), lr=0.02, weight_decay=0.05)
    theirs = torch.optim.AdamW(parameters(shapes, dtype), lr=0.02, weight_decay=0.05)
    for x, y in zip(train(ours, 15), train(theirs, 15), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12 if dtype == torch.float64 else 2e-6, atol=1e-7)
    states = [optimizer.state_dict()["state"] for optimizer in (ours, theirs)]
    assert {i: set(values) for i, values in states[0].items()} == {i: set(values) for i, values in states[1].items()}


def test_the_companion_has_rates_of_its_own_and_takes_matrices_of_groups_without_muon() -> None:
    shapes: list[tuple[int, ...]] = [(9, 4), (5,)]
    own = {
        "adamw_lr": schedules.linear(0.05, steps=20),
        "adamw_betas": (0.8, 0.9),
        "adamw_eps": 1e-6,
        "adamw_weight_decay": 0.3,
    }
    ours = Muon([{"params": parameters(shapes), "use_muon": False}], lr=7.0, weight_decay=7.0, **own)
    theirs = torch.optim.AdamW(parameters(shapes), lr=1.0, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, schedules.linear(0.05, steps=20))
    for x, y in zip(train(ours, 12), train(theirs, 12, scheduler=scheduler), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-6, atol=1e-7)


def test_a_network_trains_as_with_torchs_two_optimizers() -> None:
    def losses(make: Any) -> list[float]:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 3)).double()
        x, y = torch.randn(32, 6).double(), torch.randint(3, (32,))
        optimizers, found = make(model), []
        for _ in range(20):
            loss = nn.functional.cross_entropy(model(x), y)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            found.append(loss.item())
        return found

    def torchs(model: nn.Module) -> list[torch.optim.Optimizer]:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        vectors = [p for p in model.parameters() if p.ndim != 2]
        return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(vectors, lr=0.02, weight_decay=0.1)]

    found = losses(lambda model: [Muon(model.parameters(), lr=0.02)])
    np.testing.assert_allclose(found, losses(torchs), rtol=1e-10)
    assert found[-1] < 0.7 * found[0]


# ---------------------------------------------------------------------- as every optimizer of ours


def test_it_goes_on_from_its_state_by_name_and_from_a_deep_copy() -> None:
    shapes: list[tuple[int, ...]] = [(4, 3), (5,), (2, 3, 2)]
    names = ["weight", "bias", "kernel"]
    rate = schedules.cosine(0.1, steps=12)
    going = Muon(zip(names, parameters(shapes), strict=True), lr=rate)
    middle = train(going, 5)
    state, twin = copy.deepcopy(going.state_dict()), copy.deepcopy(going)
    turned = [nn.Parameter(value.clone()) for value in reversed(middle)]
    other = Muon([{"params": [pair]} for pair in zip(reversed(names), turned, strict=True)], lr=rate)
    other.load_state_dict(state)
    end = train(going, 5, start=5)
    same(train(twin, 5, start=5), end)
    assert other.param_groups[0]["lr"] == rate(5)
    assert other.state[turned[1]].keys() == {"step", "exp_avg", "exp_avg_sq"}
    for step in range(5, 10):  # the same gradients as the first one's: by name
        for i, p in enumerate(reversed(turned)):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * i + step))
            p.grad = 0.3 * p.detach() + noise
        other.step()
    same([p.detach() for p in reversed(turned)], end)


def test_parameters_without_gradient_or_elements_rest_and_a_closure_is_called() -> None:
    (resting,), (moving,) = parameters([(2, 2)]), parameters([(3, 2)])
    empty = nn.Parameter(torch.zeros(0, 3))
    optimizer = Muon([resting, moving, empty], lr=0.1)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append("hook"))

    def closure() -> float:
        optimizer.zero_grad()
        loss = moving.square().sum() + empty.sum()
        loss.backward()
        return loss.item()

    before = moving.detach().clone()
    assert optimizer.step(closure) == before.square().sum().item()
    assert called == ["hook"]
    assert resting not in optimizer.state
    assert not torch.equal(moving, before)


def test_a_gradient_that_is_no_number_makes_its_own_parameter_none_and_raises_nothing() -> None:
    sick, well, vector = parameters([(2, 3), (2, 3), (3,)])
    sick.grad, well.grad, vector.grad = torch.full((2, 3), torch.nan), torch.ones(2, 3), torch.ones(3)
    Muon([sick, well, vector]).step()
    assert sick.isnan().all()
    assert well.isfinite().all()
    assert vector.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "Invalid lr value: -1.0"),
        ({"lr": [0.1, 0.2]}, "lr is a list: Muon takes one value"),
        ({"adamw_betas": (0.9, [0.9, 0.99])}, "adamw_betas is a list"),
        ({"differentiable": True}, "cannot be differentiated"),
        ({"ns_coefficients": (1.0, 2.0)}, "ns_coefficients has 2 values"),
        ({"ns_steps": 100}, "ns_steps is 100"),
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"momentum": -0.1}, "Invalid momentum value"),
        ({"ns_dtype": "float16"}, "ns_dtype is 'float16'"),
        ({"adamw_lr": -1.0}, "Invalid adamw_lr value"),
        ({"adamw_betas": (0.9, 1.0)}, "Invalid beta parameter at index 1"),
        ({"adamw_eps": -1e-8}, "Invalid adamw_eps value"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Muon(parameters([(2, 3)]), **options)
    assert "\n" not in str(caught.value)


def test_sparse_gradients_are_refused_and_coefficients_may_be_a_list() -> None:
    (p,) = parameters([(2, 3)])
    p.grad = torch.ones(2, 3).to_sparse()
    with pytest.raises(InputError, match="Muon does not support sparse gradients"):
        Muon([p]).step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(train(Muon(parameters(SHAPES), ns_coefficients=list(USUAL)), 2), train(Muon(parameters(SHAPES)), 2))  # type: ignore[arg-type]
