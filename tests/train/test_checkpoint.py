import copy
import functools
import itertools
import math
import os
import random as python_random
import signal
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler, swa_utils

from trainwell.data import KeyedSampler
from trainwell.errors import InputError
from trainwell.train import Checkpoint, EarlyStopping

X, Y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


class Net(nn.Module):
    """Weights, running statistics, a buffer that is not in the state, noise, and a matrix for Muon."""

    def __init__(self, width=5):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 3)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen += len(x)
        return self.last(nn.functional.dropout(self.norm(self.first(x)), 0.2)) + 1e-3 * self.seen


def _step(model, optimizer, x=X):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), Y)
        loss.backward()
        return loss

    return optimizer.step(closure).item()


def _bits(model):
    return [value.clone() for value in itertools.chain(model.state_dict().values(), model.buffers())]


def _same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------- parts of torch

OPTIMIZERS = {
    "ASGD": lambda p: optim.ASGD(p, 0.1, t0=1),
    "Adadelta": lambda p: optim.Adadelta(p, capturable=False, foreach=True),
    "Adafactor": lambda p: optim.Adafactor(p, 0.1),
    "Adagrad": lambda p: optim.Adagrad(p, 0.1, lr_decay=0.1),
    "Adam": lambda p: optim.Adam(p, torch.tensor(0.1), amsgrad=True),
    "AdamW": lambda p: optim.AdamW([{"params": [q], "lr": 0.1 / (i + 1)} for i, q in enumerate(p)], fused=True),
    "Adamax": lambda p: optim.Adamax(p, 0.1, betas=(0.5, 0.9)),
    "LBFGS": lambda p: optim.LBFGS(p, 0.1, max_iter=3, line_search_fn="strong_wolfe"),
    "Muon": lambda p: optim.Muon([q for q in p if q.ndim == 2], 0.1),
    "NAdam": lambda p: optim.NAdam(p, 0.1, decoupled_weight_decay=True, weight_decay=0.1),
    "RAdam": lambda p: optim.RAdam(p, 0.1),
    "RMSprop": lambda p: optim.RMSprop(p, 0.1, momentum=0.5, centered=True),
    "Rprop": lambda p: optim.Rprop(p, 0.1),
    "SGD": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "SparseAdam": lambda p: optim.SparseAdam(p, 0.1),
}


def test_the_table_has_all_optimizers_of_torch():
    there = {name for name, thing in vars(optim).items() if isinstance(thing, type)} - {"Optimizer"}
    assert there <= set(OPTIMIZERS)


def _embedding_step(model, optimizer):
    optimizer.zero_grad()
    model(Y).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) & set(vars(optim))))
def test_every_optimizer_goes_on_to_the_bit(name, tmp_path):
    step, make = _step, Net
    if name == "SparseAdam":
        step, make = _embedding_step, lambda: nn.Embedding(3, 4, sparse=True)

    def new():
        model = make()
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        return model, optimizer, Checkpoint(tmp_path, model=model, optimizer=optimizer)

    model, optimizer, checkpoint = new()
    for _ in range(3):
        step(model, optimizer)
    checkpoint.save()
    for _ in range(3):
        step(model, optimizer)
    again, its, checkpoint = new()
    checkpoint.load()
    for _ in range(3):
        step(again, its)
    assert _same(_bits(model), _bits(again))
    assert repr(its.state_dict()) == repr(optimizer.state_dict())


SCHEDULERS = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.5, 3, scale_fn=lambda x: 0.9**x, scale_mode="iterations"),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=7),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4, 6]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.5, 12),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8, 2.0),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.LinearLR(o, 0.1, total_iters=5),
            swa_utils.SWALR(o, 0.05, 3),
            lr_scheduler.CosineAnnealingLR(o, 5),
        ],
        [5, 7],
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, 6, "linear"),
}


def test_the_table_has_all_schedulers_of_torch():
    there = {name for name in lr_scheduler.__all__ if isinstance(getattr(lr_scheduler, name), type)}
    assert there - {"LRScheduler"} <= set(SCHEDULERS)


def _rates(optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step(*[1.0] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return rates


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # SequentialLR's own call
def test_every_scheduler_goes_on_to_the_bit(name, tmp_path):
    def new():
        weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
        optimizer = optim.SGD([{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.01}], lr=0.1, momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        return optimizer, scheduler, Checkpoint(tmp_path, optimizer=optimizer, scheduler=scheduler)

    optimizer, scheduler, checkpoint = new()
    _rates(optimizer, scheduler, 4)
    checkpoint.save()
    rest = _rates(optimizer, scheduler, 6)
    its, again, checkpoint = new()
    checkpoint.load()
    assert _rates(its, again, 6) == rest
    assert len({tuple(rate) for rate in rest}) > 1 or name == "ConstantLR"


def test_other_parts_of_torch_and_ours_come_back(tmp_path):
    def new():
        model = Net()
        parts = {
            "average": swa_utils.AveragedModel(
                model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
            ),
            "scaler": torch.amp.GradScaler("cpu"),
            "unused": torch.amp.GradScaler("cpu", enabled=False),
            "sampler": KeyedSampler(10),
            "stopping": EarlyStopping(patience=3, mode="min"),
            "stateless": nn.Dropout(),
        }
        return model, parts, Checkpoint(tmp_path, **parts)

    model, parts, checkpoint = new()
    parts["average"].update_parameters(model)
    parts["average"].update_parameters(Net())
    parts["scaler"].scale(torch.ones(()))
    parts["scaler"].update(2.0**7)
    parts["sampler"].set_epoch(3, 4)
    parts["stopping"].update(0.25, at=2)
    checkpoint.save()
    _, again, checkpoint = new()
    checkpoint.load()
    assert _same(_bits(parts["average"]), _bits(again["average"]))
    assert again["average"].n_averaged == 2
    assert again["scaler"].get_scale() == 2.0**7
    assert (again["sampler"].epoch, again["sampler"].taken) == (3, 4)
    assert (again["stopping"].best, again["stopping"].best_at) == (0.25, 2)


def test_optimizer_state_is_laid_out_like_its_parameter(tmp_path):
    def new():
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = optim.Adam(model.parameters())
        return model, optimizer, Checkpoint(tmp_path, model=model, optimizer=optimizer)

    model, optimizer, checkpoint = new()
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    checkpoint.save()
    model, optimizer, checkpoint = new()
    checkpoint.load()
    assert optimizer.state[model.weight]["exp_avg"].stride() == model.weight.stride() == (27, 1, 9, 3)


# ---------------------------------------------------------------------- generators and wrappers


def _draw():
    return torch.rand(2).tolist(), np.random.randn(3).tolist(), python_random.gauss(0, 1), torch.randn(3).tolist()


def test_all_global_generators_go_on(tmp_path):
    torch.randn(1), np.random.randn(), python_random.gauss(0, 1)  # each keeps half a pair of normal numbers
    Checkpoint(tmp_path).save()
    drawn = _draw()
    Checkpoint(tmp_path).load()
    assert _draw() == drawn


def test_generators_are_let_be_where_that_is_asked_for(tmp_path):
    Checkpoint(tmp_path / "a").save()
    Checkpoint(tmp_path / "b", random_states=False).save()
    for folder, how in (("a", {"random_states": False}), ("b", {})):
        before = torch.get_rng_state()
        torch.rand(1)
        Checkpoint(tmp_path / folder, **how).load()
        assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
        nn.DataParallel,
    ],
    ids=["compiled", "both", "parallel"],
)
def test_a_wrapped_model_is_saved_bare(wrap, tmp_path):
    bare = Net()
    Checkpoint(tmp_path / "wrapped", model=wrap(bare)).save()
    again = Net()
    Checkpoint(tmp_path / "wrapped", model=again).load()
    assert _same(_bits(bare), _bits(again))
    Checkpoint(tmp_path / "bare", model=bare).save()
    again = Net()
    Checkpoint(tmp_path / "bare", model=wrap(again)).load()
    assert _same(_bits(bare), _bits(again))


# ---------------------------------------------------------------------- the loop's side


def test_values_come_back_and_without_a_save_there_are_none(tmp_path):
    model = Net()
    before = _bits(model)
    assert Checkpoint(tmp_path / "new", model=model).load() == {}
    assert not (tmp_path / "new").exists()
    assert _same(before, _bits(model))
    checkpoint = Checkpoint(tmp_path, model=model)
    for step in range(5):
        checkpoint.save(step=step, best=(0.5, None), curve=[1.0, math.nan], name="a", tensor=torch.ones(2))
    values = Checkpoint(tmp_path, model=model).load()
    assert (values["step"], values["best"], values["name"], math.isnan(values["curve"][1])) == (
        4,
        (0.5, None),
        "a",
        True,
    )
    assert torch.equal(values["tensor"], torch.ones(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "save-00000004", "save-00000005"]


def test_every_saves_when_it_is_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path)
    saved = []
    for _ in range(8):
        now[0] += 25
        saved.append(checkpoint.every(60, now=now[0]))
    assert saved == [False, False, True, False, False, True, False, False]
    assert checkpoint.load() == {"now": 250.0}
    now[0] += 50
    assert not checkpoint.every(60)  # counted from the load


def test_the_newest_that_is_whole_is_loaded(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(step=1)
    checkpoint.save(step=2)
    (tmp_path / "save-00000002" / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="save-00000002 is damaged"):
        assert checkpoint.load() == {"step": 1}
    (tmp_path / "save-00000001" / "state.json").write_text("{}")
    with pytest.raises(InputError, match="no checkpoint that is whole"), warnings.catch_warnings(action="ignore"):
        checkpoint.load()


class Odd:
    def __init__(self, state=None, takes=True):
        self.state, self.takes = state, takes

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        if not self.takes:
            raise ValueError("too old\nby far")
        self.state = state


FSDP = type("FullyShardedDataParallel", (nn.Module,), {})


@pytest.mark.parametrize(
    ("save", "load", "said"),
    [
        ({"model": Net()}, {"model": Net(4)}, "another 'model', .* size mismatch for first.weight"),
        ({"model": Net()}, {"model": nn.Linear(1, 1)}, "another 'model', .* Missing key"),
        ({"a": Odd()}, {"a": Odd(), "b": Odd()}, "saved without a part 'b'"),
        ({"a": Odd(), "b": Odd()}, {"a": Odd()}, "saved with a part 'b'"),
        ({"a": Odd()}, {"a": Odd(takes=False)}, "another 'a', .* ValueError: too old by far"),
        ({"a": Odd()}, {"a": KeyedSampler(3)}, "with a Odd as the part 'a', which is a KeyedSampler now"),
        ({"s": KeyedSampler(3)}, {"s": KeyedSampler(4)}, "another 's', .* size was 3 and is 4 now"),
        ({"o": optim.SGD(Net().parameters())}, {"o": optim.SGD(nn.Linear(1, 1).parameters())}, "another 'o', "),
        ({"o": optim.SGD(Net().parameters())}, {"o": optim.Adam(Net().parameters())}, "a SGD as the part 'o'"),
    ],
)
def test_other_parts_than_those_saved_are_one_line(save, load, said, tmp_path):
    Checkpoint(tmp_path, **save).save()
    with pytest.raises(InputError, match=said) as error:
        Checkpoint(tmp_path, **load).load()
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: Checkpoint(folder, scaler=None), "the part 'scaler', a NoneType, has no state_dict"),
        (lambda folder: Checkpoint(folder, step=3), "the part 'step', a int, has no state_dict; give it to save"),
        (lambda folder: Checkpoint(folder, keep=0), "keep must be at least 1"),
        (lambda folder: Checkpoint(folder, model=FSDP()), "'model' is in pieces"),
        (lambda folder: Checkpoint(folder, odd=Odd({"fn": [len]})).save(), r"parts\.odd\.fn\[0\], of type builtin"),
        (lambda folder: Checkpoint(folder).save(step=object()), r"values\.step, of type object"),
    ],
)
def test_what_cannot_be_saved_is_one_line(make, said, tmp_path):
    with pytest.raises(InputError, match=said) as error:
        make(tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.glob("save-*")) == []


def test_tensors_of_a_part_of_ones_own_are_given_back_where_it_has_its_own(tmp_path):
    state = {"shadow": {"weight": torch.ones(2)}, "list": [torch.ones(1), 3], "new": torch.ones(1)}
    Checkpoint(tmp_path, ema=Odd(state)).save()
    on_meta = Odd(
        {"shadow": {"weight": torch.ones(2, device="meta")}, "list": [torch.ones(1), None]}
    )  # for lack of GPUs
    Checkpoint(tmp_path, ema=on_meta).load()
    assert on_meta.state["shadow"]["weight"].is_meta
    assert on_meta.state["list"] == [torch.ones(1), 3]
    assert torch.equal(on_meta.state["new"], torch.ones(1))


# ---------------------------------------------------------------------- other processes


def _python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_process_may_load_but_not_save_until_the_first_has_ended(tmp_path):
    Checkpoint(tmp_path).save(step=1)
    code = """
        import sys
        from trainwell.train import Checkpoint
        checkpoint = Checkpoint(sys.argv[1])
        print(checkpoint.load())
        checkpoint.save(step=2)
    """
    said, error = _python(code, tmp_path).communicate(timeout=100)
    assert said == "{'step': 1}\n"
    assert error.splitlines()[-1].startswith(f"trainwell.errors.InputError: another process saves in {tmp_path}")
    Checkpoint(tmp_path).save(step=3)  # again in this process

    other = tmp_path / "other"  # one that was killed holds nothing, though a child of its lives on
    first = _python(
        """
        import os, sys, time
        from trainwell.train import Checkpoint
        Checkpoint(sys.argv[1]).save(step=1)
        if os.fork() == 0:
            os.close(1), os.close(2)
            time.sleep(20)
            os._exit(0)
        print("saved", flush=True)
        time.sleep(100)
        """,
        other,
    )
    assert first.stdout.readline() == "saved\n"
    first.kill()
    first.communicate(timeout=100)
    Checkpoint(other).save(step=2)


LOOP = """
    import os, sys, time
    import torch
    from torch.utils.data import DataLoader
    from trainwell.data import KeyedSampler
    from trainwell.train import Checkpoint

    data = torch.arange(10_000)
    sampler = KeyedSampler(data)
    loader = DataLoader(data, 2, sampler=sampler, num_workers=1)
    with Checkpoint(sys.argv[1], sampler=sampler) as checkpoint:
        step = checkpoint.load().get("step", 0)
        for epoch in sampler.epochs(1):
            for batch in sampler.batches(loader):
                step += 1
                half = step
                print("step", step, flush=True)
                time.sleep(0.01)
                half = None
                checkpoint.every(1000, step=step)
    print("not reached")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_end_of_the_step_and_ends_the_process(number, tmp_path):
    process = _python(LOOP, tmp_path)
    for step in range(1, 6):
        assert process.stdout.readline() == f"step {step}\n"
    process.send_signal(number)
    said, error = process.communicate(timeout=100)
    last = int(said.split()[-1]) if said else 5
    assert process.returncode == -signal.SIGINT
    assert error.splitlines()[-1] == f"KeyboardInterrupt: interrupted, and saved in {tmp_path}"
    sampler = KeyedSampler(10_000)
    assert Checkpoint(tmp_path, sampler=sampler).load() == {"step": last}
    assert sampler.taken == 2 * last


def test_a_signal_after_the_last_save_still_ends_the_block_and_outside_of_it_nothing_changes(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="after the last save"), checkpoint:
        checkpoint.save(step=1)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    checkpoint.save(step=2)
    with pytest.raises(KeyError), checkpoint:  # an error of the loop's own is the one to tell
        os.kill(os.getpid(), signal.SIGINT)
        raise KeyError


def _in_child(act):
    """Does something in a forked child, whose lock on a folder ends with it; returns its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:  # never back into the tests
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_killed_save_leaves_the_one_before(tmp_path):
    model = Net()
    assert _in_child(Checkpoint(tmp_path, model=model).save) == 0

    def die(at):
        seen = itertools.count(1)

        def hook(event, arguments):
            if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove") and next(seen) == at:
                os._exit(9)

        other = copy.deepcopy(model)
        checkpoint = Checkpoint(tmp_path, model=other)
        nn.init.zeros_(other.first.weight)
        sys.addaudithook(hook)
        checkpoint.save(step=2)

    steps = set()
    for dies_at in itertools.count(1):
        code = _in_child(functools.partial(die, dies_at))
        again = Net()
        step = Checkpoint(tmp_path, model=again).load().get("step", 1)
        assert step == (2 if bool((again.first.weight == 0).all()) else 1)
        steps.add(step)
        if code == 0:
            break
        assert code == 9
    assert steps == {1, 2}
    assert dies_at > 6
