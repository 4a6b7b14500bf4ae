"""What runs a rule: after a fork, from threads, after an edit, without numba, per member, and on odd tensors."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainwell import optim
from trainwell.optim import formula
from trainwell.optim.formula import Program, lerp, maximum, minimum, sign, sqrt, trace, where
from trainwell.optim.kernels import cpu, generated, gpu, reference

KERNELS = pytest.mark.parametrize("kernel", ["reference", "numba"])


def pair(*shape, dtype=torch.float64):
    """Returns two equal parameters with equal gradients."""
    value, g = torch.randn(*shape, dtype=dtype), torch.randn(*shape, dtype=dtype)
    both = [torch.nn.Parameter(value.clone()) for _ in range(2)]
    for p in both:
        p.grad = g.clone()
    return both


def paths(optimizer):
    return [batch.path for plan in optimizer._plans.values() for batch, _ in plan.batches]


# ---------------------------------------------------------------------- which path is taken


def test_the_path_is_chosen_by_itself():
    p = torch.nn.Parameter(torch.randn(3, 4))
    p.grad = torch.randn(3, 4)
    for kernel, path in (("auto", "numba"), ("numba", "numba"), ("reference", "reference")):
        optimizer = optim.SGD([p], 0.1, kernel=kernel)
        optimizer.step()
        assert paths(optimizer) == [path]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_reference_runs_where_numba_cannot(dtype):
    ours, theirs = pair(3, 4, dtype=dtype)
    for p in (ours, theirs):  # in float16 the squares of small ones are 0, and torch divides by them
        p.grad += p.grad.sign() * 0.5
    a, b = optim.Adam([ours], 0.1), torch.optim.Adam([theirs], 0.1, foreach=True)
    for _ in range(3):
        a.step()
        b.step()
    assert paths(a) == ["reference"]
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_the_path_that_is_told_is_the_one_that_was_taken(monkeypatch):
    p = torch.nn.Parameter(torch.randn(3, 4))
    p.grad = torch.randn(3, 4)
    optimizer = optim.SGD([p], 0.1, kernel="numba")
    for compiled, path in ((cpu.compiled, "numba"), (lambda *_: None, "reference"), (cpu.compiled, "numba")):
        monkeypatch.setattr(cpu, "compiled", compiled)
        optimizer.step()
        assert paths(optimizer) == [path]


def test_triton_launches_on_the_device_where_the_arrays_are(monkeypatch):
    """On a machine with several GPUs the current one may be another."""
    current, launched = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tensor.device)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda addresses, *_: launched.append((grid, list(current), addresses.device))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    p, cuts = torch.zeros(10), cpu.chunks([10], 4)
    table = types.SimpleNamespace(
        addresses=np.full((2, 1), p.data_ptr(), dtype=np.uint64),
        cuts=cuts,
        rows=np.zeros(1, dtype=np.int64),
        there=None,
    )
    gpu.run(Kernel(), table, np.ones((1, 1), np.float32), torch.device("meta"))
    assert launched == [((1,), [torch.device("meta")], torch.device("meta"))]


def test_triton_is_refused_where_there_is_no_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"kernel='triton' needs"):
        optim.SGD([p], 0.1, kernel="triton").step()


def test_everything_works_without_numba():
    """In a process that cannot import numba."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch; from trainwell import optim\n"
        "a, b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))\n"
        "x, y = optim.Adam([a], 0.1), torch.optim.Adam([b], 0.1)\n"
        "for _ in range(3):\n"
        "    a.grad = b.grad = torch.tensor([1.0, -2.0, 0.5])\n"
        "    x.step(); y.step()\n"
        "torch.testing.assert_close(a, b)\n"
        "assert [b.path for plan in x._plans.values() for b, _ in plan.batches] == ['reference']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path):
    """The folder's place is taken by a file."""
    (tmp_path / "taken").write_text("")
    environment = {**os.environ, "TRAINWELL_CACHE": str(tmp_path / "taken")}
    code = _RULE.format(factor=1.0) + "check(Rule)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


# ---------------------------------------------------------------------- fork, threads, edits

_RULE = """
import os, sys, torch
from trainwell.optim import Optimizer
class Rule(Optimizer):
    lr: float = 0.5
    @staticmethod
    def update(p, g, *, lr):
        return p - {factor} * lr * g
def check(rule, expected=-{factor}):
    p = torch.nn.Parameter(torch.zeros(70_000)); p.grad = torch.full((70_000,), 2.0)
    optimizer = rule([p], kernel="numba"); optimizer.step()
    assert [b.path for plan in optimizer._plans.values() for b, _ in plan.batches] == ["numba"]
    assert p.unique().tolist() == [expected], p
"""


def test_a_fresh_process_takes_what_was_compiled_and_an_edited_rule_is_compiled_anew(tmp_path):
    rule = tmp_path / "edited.py"
    environment = {**os.environ, "TRAINWELL_CACHE": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import edited; edited.check(edited.Rule)"

    def run(factor):
        rule.write_text(_RULE.format(factor=factor))
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path, env=environment)
        return sorted((tmp_path / "cache" / "kernels").rglob("*.nbc"))

    first = run(1.0)
    assert len(first) == 1
    when = first[0].stat().st_mtime_ns
    assert run(3.0) == first  # the program is the same: a number is no text, and the check passed with the new one
    assert first[0].stat().st_mtime_ns == when  # it was read, not written again
    rule.write_text(_RULE.format(factor=1.0).replace("return p - 1.0 * lr * g", "return p - lr * g * g"))
    code = "import edited; edited.check(edited.Rule, -2.0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path, env=environment)
    assert len(sorted((tmp_path / "cache" / "kernels").rglob("*.nbc"))) == 2


def _step_large(optimizer, p, steps=3):
    for _ in range(steps):
        p.grad = torch.from_numpy(np.full(p.shape, 2.0, np.float32))  # torch's own threads do not outlive a fork
        optimizer.step()
    return p


def _in_child(queue, p, optimizer):
    _step_large(optimizer, p)  # by our threads
    torch.set_num_threads(1)
    other = torch.nn.Parameter(torch.zeros(600_000))
    fresh = optim.Adamax([other], 0.1, eps=0.125)  # a kernel that the parent lacks
    _step_large(fresh, other)
    queue.put((p[:3].tolist(), other[:3].tolist()))
    queue.close()
    queue.join_thread()
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_it_works_in_a_forked_child():
    code = "import sys; sys.path[:0] = sys.argv[1:]\nimport test_kernels; test_kernels.forked()\n"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def forked():
    """Steps in the parent, in two forked children, and in the parent again: all right, and none stuck."""
    torch.set_num_threads(2)
    p = torch.nn.Parameter(torch.zeros(600_000))
    optimizer = optim.SGD([p], 0.25, momentum=0.5)
    _step_large(optimizer, p)
    context = multiprocessing.get_context("fork")
    results = []
    for _ in range(2):
        queue = context.Queue()
        child = context.Process(target=_in_child, args=(queue, p, optimizer))
        child.start()
        results.append(queue.get(timeout=60))
        child.join(timeout=60)
        assert child.exitcode == 0
    _step_large(optimizer, p)
    peer = torch.nn.Parameter(torch.zeros(3))
    _step_large(torch.optim.SGD([peer], 0.25, momentum=0.5), peer, steps=6)
    other = torch.nn.Parameter(torch.zeros(3))
    _step_large(torch.optim.Adamax([other], 0.1, eps=0.125), other)
    torch.testing.assert_close(p[:3], peer)
    for theirs, fresh in results:
        torch.testing.assert_close(torch.tensor(theirs), peer.detach())
        torch.testing.assert_close(torch.tensor(fresh), other.detach())


def test_it_works_from_four_threads_at_once():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    failures = []

    def train(seed):
        try:
            torch.manual_seed(seed)
            p, q = pair(600, 800, dtype=torch.float32)
            mine, theirs = optim.NAdam([p], 0.1), torch.optim.NAdam([q], 0.1)
            for _ in range(10):
                mine.step()
                theirs.step()
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    torch.set_num_threads(before)
    assert not failures


def test_threads_change_no_bit():
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        p, _ = pair(700, 900, dtype=torch.float32)
        optimizer = optim.Adam([p], 0.1)
        for _ in range(3):
            optimizer.step()
        results.append(p.detach().clone())
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# ---------------------------------------------------------------------- values


@KERNELS
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Lion"])
@pytest.mark.parametrize("options", [{}, {"maximize": True}])
def test_nan_stays_nan_and_infinity_goes_where_torchs_goes(name, options, kernel):
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 0.0])
    p = torch.nn.Parameter(torch.ones(5))
    optimizer = getattr(optim, name)([p], 0.1, kernel=kernel, **options)
    for _ in range(2):
        p.grad = values.clone()
        optimizer.step()
    assert p.isnan()[1]
    assert p.isfinite()[0]
    assert p.isfinite()[4]
    if hasattr(torch.optim, name):
        q = torch.nn.Parameter(torch.ones(5))
        peer = getattr(torch.optim, name)([q], 0.1, **options)
        for _ in range(2):
            q.grad = values.clone()
            peer.step()
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, equal_nan=True)


WORDS = {
    "where": lambda p, g, m: (where(p > g, lerp(m, g, 0.3), minimum(p, m)), maximum(m, 0.25)),
    "signs": lambda p, g, m: (p - 0.1 * sign(g) * abs(m), -m + 1),
    "roots": lambda p, g, m: (p + sqrt(abs(g)) / (1 + m**2) - (g * g) ** 0.5, (2 - m) / 3),
    "trade places": lambda p, g, m: (m, p),
    "numbers": lambda p, g, m: (0.5 * m, 0.0),
    "the gradient itself": lambda p, g, m: (g + 0 * m, g),
    "joined": lambda p, g, m: (p - 0.1 * m / (abs(g) + 1), m + 3.0 * g),
    "numbers first": lambda p, g, m: (1 / (2 + m * m) - p, where(m > 0.1, 1.0, m)),
    "toward a number": lambda p, g, m: (lerp(p, 0.0, 0.1), lerp(2.0, m, 0.7)),
    "from the nearer side": lambda p, g, m: (lerp(p, g, 1.0), lerp(m, g, 0.75)),
}


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("in_place", [True, False])
def test_each_word_means_the_same_on_every_path(name, in_place):
    """Numbers, one by one, are the truth."""
    torch.manual_seed(0)
    arrays = {what: torch.randn(2, 50, dtype=torch.float64) for what in "pgm"}
    rows = zip(*(arrays[what].flatten().tolist() for what in "pgm"), strict=True)
    truth = torch.tensor([WORDS[name](*row) for row in rows], dtype=torch.float64).T.reshape(2, 2, 50)
    program, numbers, _ = trace(WORDS[name], list("pgm"))

    tensors = {what: [x.clone()] for what, x in arrays.items()}
    reference.run(program, numbers, tensors, in_place=in_place)
    torch.testing.assert_close(torch.stack([tensors["p"][0], tensors["m"][0]]), _kept(program, truth, arrays))
    assert torch.equal(tensors["g"][0], arrays["g"])

    class Rule(optim.Optimizer):
        @staticmethod
        def update(p, g, m):
            return WORDS[name](p, g, m)

    p = torch.nn.Parameter(arrays["p"].clone())
    p.grad = arrays["g"].clone()
    optimizer = Rule([p], kernel="numba")
    if "m" in formula.state_of(program):
        optimizer.state[p]["m"] = arrays["m"].clone()
    optimizer.step()
    assert paths(optimizer) == ["numba"]
    torch.testing.assert_close(p.detach(), truth[0])
    if "m" in formula.state_of(program):
        torch.testing.assert_close(optimizer.state[p]["m"], truth[1])


def _kept(program: Program, truth, arrays):
    """Returns the new values, with what the program does not read left as it was."""
    return torch.stack([truth[0], truth[1] if "m" in formula.state_of(program) else arrays["m"]])


def test_the_reference_passes_over_memory_no_more_often_than_torch(monkeypatch):
    """Counted: calls of `torch._foreach_…` in one step of Adam, beside those of torch's own."""
    counts = {"ours": 0, "theirs": 0}
    names = [name for name in dir(torch) if name.startswith("_foreach_")]

    def counted(function, who):
        def call(*arguments, **options):
            first = arguments[0]
            if isinstance(first, (list, tuple)) and first and first[0].numel() > 1:  # not the step counters
                counts[who[0]] += 1
            return function(*arguments, **options)

        return call

    ours, theirs = pair(30, 40)
    for key, optimizer in (
        ("ours", optim.AdamW([ours], kernel="reference")),
        ("theirs", torch.optim.AdamW([theirs], foreach=True)),
    ):
        optimizer.step()
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(torch, name, counted(getattr(torch, name), [key]))
            optimizer.step()
    assert 5 < counts["ours"] <= counts["theirs"]


# ---------------------------------------------------------------------- a new rule


def test_a_rule_of_ten_lines_takes_every_path():
    class AdaBelief(optim.Optimizer):  # Zhuang et al. (2020), algorithm 2
        lr: float = 1e-3
        betas: tuple[float, float] = (0.9, 0.999)
        eps: float = 1e-16

        @staticmethod
        def update(p, g, m, s, *, t, lr, betas, eps):
            m = lerp(m, g, 1 - betas[0])
            s = lerp(s, (g - m) ** 2, 1 - betas[1]) + eps
            return p - lr * (m / (1 - betas[0] ** t)) / (sqrt(s / (1 - betas[1] ** t)) + eps), m, s

    import jax
    import optax

    torch.manual_seed(0)
    peer = optax.adabelief(1e-2, 0.9, 0.999, eps=1e-16, eps_root=1e-16)
    start, grads = torch.randn(5, 3, dtype=torch.float64), torch.randn(9, 5, 3, dtype=torch.float64)
    with jax.enable_x64(True):
        theirs = jax.numpy.asarray(start.numpy())
        state = peer.init(theirs)
        for g in grads:
            change, state = peer.update(jax.numpy.asarray(g.numpy()), state, theirs)
            theirs = optax.apply_updates(theirs, change)
        truth = torch.tensor(theirs.tolist(), dtype=torch.float64)
    for kernel in ("reference", "numba"):
        p = torch.nn.Parameter(start.clone())
        optimizer = AdaBelief([p], lr=1e-2, kernel=kernel)
        for g in grads:
            p.grad = g.clone()
            optimizer.step()
        assert paths(optimizer) == [kernel]
        torch.testing.assert_close(p.detach(), truth, rtol=1e-10, atol=1e-10)
    stacked = torch.nn.Parameter(start[:, None].clone())  # one member per row, of two rates
    optimizer = AdaBelief([stacked], lr=[1e-2, 1e-2, 1e-2, 1e-2, 0.0])
    for g in grads:
        stacked.grad = g[:, None].clone()
        optimizer.step()
    torch.testing.assert_close(stacked.detach()[:4, 0], truth[:4], rtol=1e-10, atol=1e-10)
    assert torch.equal(stacked.detach()[4, 0], start[4])


def test_members_whose_pieces_do_not_lie_together_are_stepped_right():
    """Stacked along a dimension that is the innermost in memory."""
    torch.manual_seed(0)
    value, g = torch.randn(5, 3), torch.randn(5, 3)
    ours, alone = torch.nn.Parameter(value.clone().t()), [torch.nn.Parameter(row.clone()) for row in value.t()]
    ours.grad = g.clone().t()
    optimizer = optim.Adam([ours], lr=[0.1, 0.2, 0.3])
    optimizer.step()
    for row, gradient, rate in zip(alone, g.t(), (0.1, 0.2, 0.3), strict=True):
        row.grad = gradient.clone()
        torch.optim.Adam([row], lr=rate).step()
    torch.testing.assert_close(ours.detach(), torch.stack([row.detach() for row in alone]))


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 40_000), max_size=6), itemsize=st.sampled_from([4, 8]))
def test_chunks_cover_each_element_once(sizes, itemsize):
    tensors, starts, lengths = cpu.chunks(sizes, itemsize)
    covered = [[] for _ in sizes]
    for tensor, start, length in zip(tensors.tolist(), starts.tolist(), lengths.tolist(), strict=True):
        covered[tensor] += range(start // itemsize, start // itemsize + length)
    assert covered == [list(range(size)) for size in sizes]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no such rights here")
def test_code_that_others_may_write_is_not_run(tmp_path, monkeypatch):
    """A cache that is shared holds images for all, but nobody else's code."""
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path))
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    text = "value = 1\n# in a shared folder\n"
    module, on_disk = generated.load(text)
    assert (module.value, on_disk, list(folder.iterdir())) == (1, False, [])
    folder.chmod(0o700)
    module, on_disk = generated.load(text + "# in a folder of one's own\n")
    assert (module.value, on_disk, len(list(folder.glob("*.py")))) == (1, True, 1)
