"""Every rule agrees with torch's, on every path, in all configurations of torch's own table; others with optax."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import torch

from torch_table import optim_db
from trainwell import optim
from trainwell.optim.formula import trace

OURS = ("Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")
CASES = [
    pytest.param(info.optim_cls.__name__, case.kwargs, id=f"{info.optim_cls.__name__}-{number}")
    for info in optim_db
    if info.optim_cls.__name__ in OURS
    for number, case in enumerate(info.optim_inputs_func("cpu"))
]
TOLERANCE = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 1e-5, "atol": 1e-6}}
SHAPES = ((3, 4), (5,), (2, 3, 4), (), (0,), (40, 1000))


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)  # torch keeps NAdam's product in it
    yield request.param
    torch.set_default_dtype(before)


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def train(optimizer, ps, steps=7, missing=True):
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for i, p in enumerate(ps):
            g = torch.randn(p.shape, generator=generator)
            p.grad = None if missing and step == 3 and i == 1 else g
        optimizer.step()


def options_of(case):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in case.items()}


def test_torchs_table_is_there():
    assert {case.values[0] for case in CASES} == set(OURS)
    assert len(CASES) >= 50


@pytest.mark.parametrize("kernel", ["reference", "numba"])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_it_agrees_with_torch(name, case, kernel, dtype):
    theirs, ours = parameters(), parameters()
    train(getattr(torch.optim, name)(theirs, **options_of(case)), theirs)
    train(mine := getattr(optim, name)(ours, kernel=kernel, **options_of(case)), ours)
    assert {batch.path for plan in mine._plans.values() for batch, _ in plan.batches} == {kernel}
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **TOLERANCE[dtype])


@pytest.mark.parametrize(("name", "case"), CASES)
def test_its_state_is_called_as_torchs(name, case, dtype):
    theirs, ours = parameters(), parameters()
    a, b = getattr(torch.optim, name)(theirs, **options_of(case)), getattr(optim, name)(ours, **options_of(case))
    train(a, theirs)
    train(b, ours)
    a, b = a.state_dict()["state"], b.state_dict()["state"]
    assert {i: set(values) for i, values in b.items()} == {i: set(values) for i, values in a.items() if values}
    for i, values in b.items():
        for what, value in values.items():
            torch.testing.assert_close(value, a[i][what], **TOLERANCE[dtype], check_dtype=what != "mu_product")


_BY_TRITON = """
import sys
sys.path[:0] = sys.argv[1:3]
import test_rules as t, torch
from trainwell import optim
t.SHAPES = (*t.SHAPES[:-1], (50, 100))  # more than one piece, but the interpreter takes its time
for dtype, tolerance in t.TOLERANCE.items():
    torch.set_default_dtype(dtype)
    cases = [case.values for case in t.CASES] + [("Lion", {"weight_decay": 0.1})]
    if sys.argv[3] == "few":  # each rule plain, and with most that it has
        cases = [case for number, case in enumerate(cases) if number in (0, len(cases) - 1)
                 or case[0] != cases[number - 1][0] or case[0] != cases[number + 1][0]]
    for name, case in cases:
        theirs, ours = t.parameters(), t.parameters()
        peer = getattr(torch.optim, name, None) or (lambda ps, **o: optim.Lion(ps, kernel="reference", **o))
        t.train(peer(theirs, **t.options_of(case)), theirs)
        mine = getattr(optim, name)(ours, kernel="triton", **t.options_of(case))
        t.train(mine, ours)
        assert {batch.path for plan in mine._plans.values() for batch, _ in plan.batches} == {"triton"}
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, **tolerance)
print(len(cases), "agree")
"""


def test_the_triton_kernel_agrees_with_torch_in_a_few_configurations():
    assert _by_triton("few") >= 2 * len(OURS)


@pytest.mark.slow
def test_the_triton_kernel_agrees_with_torch_in_all_configurations():
    assert _by_triton("all") == len(CASES) + 1


def _by_triton(how_many):
    """Trains by Triton's interpreter; returns how many configurations agree."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    here = Path(__file__).parent
    words = [sys.executable, "-W", "ignore", "-c", _BY_TRITON, here, here.parent, how_many]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.removesuffix(" agree\n"))


# ---------------------------------------------------------------------- what torch lacks, or has otherwise

BY_OPTAX = {
    "Lion": (
        lambda ps, k: optim.Lion(ps, 1e-2, weight_decay=0.1, kernel=k),
        optax.lion(1e-2, 0.9, 0.99, weight_decay=0.1),
    ),
    "NAdam with a constant beta": (
        lambda ps, k: optim.NAdam(ps, 1e-2, momentum_decay=None, kernel=k),
        optax.nadam(1e-2, 0.9, 0.999, eps=1e-8),
    ),
    "NAdam with a constant beta, decoupled decay": (
        lambda ps, k: optim.NAdam(
            ps, 1e-2, momentum_decay=None, weight_decay=0.1, decoupled_weight_decay=True, kernel=k
        ),
        optax.nadamw(1e-2, 0.9, 0.999, eps=1e-8, weight_decay=0.1),
    ),
    "RMSprop with eps inside": (
        lambda ps, k: optim.RMSprop(ps, 1e-2, alpha=0.9, eps=1e-3, eps_inside=True, kernel=k),
        optax.rmsprop(1e-2, decay=0.9, eps=1e-3, eps_in_sqrt=True),
    ),
    "RMSprop with eps inside, centred": (
        lambda ps, k: optim.RMSprop(ps, 1e-2, alpha=0.9, eps=1e-3, eps_inside=True, centered=True, kernel=k),
        optax.rmsprop(1e-2, decay=0.9, eps=1e-3, eps_in_sqrt=True, centered=True),
    ),
}


@pytest.mark.parametrize("kernel", ["reference", "numba"])
@pytest.mark.parametrize("name", BY_OPTAX)
def test_it_agrees_with_optax(name, kernel):
    make, peer = BY_OPTAX[name]
    generator = np.random.default_rng(0)
    start = generator.normal(size=(4, 3))
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = make([p], kernel)
    with jax.enable_x64(True):
        theirs = jax.numpy.asarray(start)
        state = peer.init(theirs)
        for _ in range(8):
            g = generator.normal(size=start.shape)
            p.grad = torch.tensor(g)
            optimizer.step()
            change, state = peer.update(jax.numpy.asarray(g), state, theirs)
            theirs = optax.apply_updates(theirs, change)
        np.testing.assert_allclose(p.detach().numpy(), np.asarray(theirs), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kernel", ["reference", "numba"])
@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999])
def test_almost_adam_is_too_long_by_the_ratio_of_the_corrections(beta2, kernel):
    """The lecture's Adam, without bias correction: its step is (1 - b1^t) / sqrt(1 - b2^t) times the right one."""
    almost, right = (torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    g = torch.tensor([3.0, -0.5, 1e-3], dtype=torch.float64)
    for p, correct in ((almost, False), (right, True)):
        optimizer = optim.Adam([p], 1e-3, betas=(0.9, beta2), eps=0.0, bias_correction=correct, kernel=kernel)
        for _ in range(30):
            p.grad = g.clone()  # a constant gradient
            optimizer.step()
    steps = np.arange(1, 31)
    ratio = (1 - 0.9**steps) / np.sqrt(1 - beta2**steps)
    np.testing.assert_allclose((almost / right).detach().numpy(), ratio.mean(), rtol=1e-10)
    if beta2 == 0.999:
        assert ratio[0] == pytest.approx(3.2, abs=0.05)
        assert ratio.max() == pytest.approx(6.6, abs=0.05)
        assert 10 <= ratio.argmax() + 1 <= 14


# ---------------------------------------------------------------------- formulas are plain functions


def test_a_formula_runs_on_numbers():
    p, m, v, _ = optim.Adam.update(
        1.0, 0.5, 0.0, 0.0, 0.0, t=1, lr=0.1, betas=(0.9, 0.999), eps=0.0, amsgrad=False, bias_correction=True,
    )  # fmt: skip
    assert (p, m, v) == pytest.approx((0.9, 0.05, 0.00025))


def test_the_rule_that_the_contributing_page_shows_takes_weight_decay():
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    results = []
    for decay in (0.5, 0.0):
        p = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
        optimizer = names["AdaBelief"]([p], lr=0.1, weight_decay=decay)
        for _ in range(3):  # what 0.5 adds to the gradient, and the same by hand
            p.grad = torch.tensor([1.0, 0.25]) + (0.5 - decay) * p.detach()
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


def test_a_formula_cannot_branch_on_arrays():
    def rule(p, g, *, lr):
        return p - lr * g if g > 0 else p

    with pytest.raises(TypeError, match="use where"):
        trace(rule, ["p", "g"], lr=0.1)


def test_a_rule_returns_all_of_its_state():
    def rule(p, g, m):
        return p - m * g

    with pytest.raises(TypeError, match="returns 1 values, not the new p, m"):
        trace(rule, ["p", "g", "m"])


def test_adam_is_short():
    """The price of a rule is its formula and its defaults; what is refused comes on top."""
    tree = ast.parse(inspect.getsource(optim.Adam)).body[0]
    parts = [x for x in tree.body if isinstance(x, ast.AnnAssign) or getattr(x, "name", "") == "update"]
    lines = {node.lineno for part in parts for node in ast.walk(part) if isinstance(node, ast.stmt)}
    assert len(lines) + 2 <= 15  # and the lines of the class and of the decorator
