"""Frozen parts stay as they are to the bit, whatever is done to the model around them."""

import copy
import pickle

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from faults import in_child
from trainwell import optim
from trainwell.ensemble import EMA, SWA, LatestK, refresh_batchnorm
from trainwell.errors import InputError
from trainwell.freezing import freeze, freeze_parameter, is_frozen, thaw
from trainwell.models import create
from trainwell.regularize import Dropout, StochasticDepth

OPTIMIZERS = [
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
    lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda parameters: optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
]


def _model():
    """A body with everything that draws, or has statistics that move, in training; and a head with some of it."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.utils.spectral_norm(nn.Linear(6, 8)), nn.BatchNorm1d(8), nn.Dropout(0.5),
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.SyncBatchNorm(8), nn.RReLU(), Dropout(0.5),
        nn.Unflatten(1, (4, 2)), nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.Flatten(),
        StochasticDepth(0.5),
    )  # fmt: skip
    head = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3))
    return nn.Sequential(body, head)


def _data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)


def _train(model, optimizer, steps=3, called=None):
    for step in range(steps):
        model.train()
        x, y = _data(step)
        optimizer.zero_grad()
        F.cross_entropy((called or model)(x), y).backward()
        optimizer.step()


def _state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _changed(before, model):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_that_has_momentum_for_them_changes_no_frozen_parameter_or_buffer(optimizer):
    model = _model()
    stepper = optimizer(model.parameters())
    _train(model, stepper)
    freeze(model[0])
    before = _state(model)
    _train(model, stepper)
    changed = _changed(before, model)
    assert not {name for name in changed if name.startswith("0.")}
    assert changed == {name for name in before if name.startswith("1.")}
    thaw(model[0])
    before = _state(model)
    _train(model, stepper)
    assert set(before) - _changed(before, model) == {"0.8.num_batches_tracked"}  # torch never counts there


def test_training_a_head_on_a_frozen_body_is_training_it_alone_on_the_bodys_features():
    model, alone = _model(), _model()[1]
    body = copy.deepcopy(model[0]).eval()
    freeze(model[0])
    _train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    with torch.no_grad():
        features = [body(_data(step)[0]) for step in range(3)]
    stepper = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        stepper.zero_grad()
        F.cross_entropy(alone(features[step]), _data(step)[1]).backward()
        stepper.step()
    assert not _changed(_state(alone), model[1])


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout1d(0.5), nn.AlphaDropout(0.5), Dropout(0.5)])
def test_frozen_dropout_returns_its_input_in_training(layer):
    x = torch.ones(4, 5)
    freeze(layer)
    layer.train()
    assert torch.equal(layer(x), x)
    thaw(layer)
    assert not torch.equal(layer(x), x)


@pytest.mark.parametrize("kind", [EMA, SWA, LatestK])
@pytest.mark.parametrize("exact", [True, False])
def test_averages_of_the_weights_and_new_statistics_leave_frozen_parts_alone(kind, exact):
    model = _model()
    _train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    freeze(model[0])
    before = _state(model)
    average, stepper = kind(model), torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        _train(model, stepper, steps=1)
        average.update()
    with average.weights():
        refresh_batchnorm(model, [_data(k)[0] for k in range(3)], exact=exact)
        changed = _changed(before, model)
        assert not {name for name in changed if name.startswith("0.")}
        assert {"1.0.weight", "1.1.running_mean", "1.1.running_var"} <= changed


def test_statistics_above_a_frozen_body_are_refreshed_to_those_of_its_output_in_evaluation():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.BatchNorm1d(6)).double()
    nn.init.constant_(model[0].running_mean, 3.0)
    freeze(model[0])
    x = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for exact in (True, False):
        refresh_batchnorm(model.train(), [x[:9], x[9:]], exact=exact)
        torch.testing.assert_close(model[2].running_mean, ((x - 3) / (1 + 1e-5) ** 0.5).mean(0))


def _unpickled_by_another_process(model, monkeypatch):
    written = pickle.dumps(model)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    read = pickle.loads(written)
    for hook in [read[0][1].register_forward_pre_hook(lambda *_: None) for _ in range(30)]:
        hook.remove()  # were one of them numbered as ours, ours would be gone
    return read


@pytest.mark.parametrize("how", ["copy", "pickle"])
def test_copies_and_what_was_pickled_are_frozen_and_can_be_thawed(how, monkeypatch):
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as in a process that has just begun
    model = _model()[:1]
    model[0].pop(3)  # torch refuses to pickle parametrized layers
    freeze(model[0][1:])
    other = copy.deepcopy(model) if how == "copy" else _unpickled_by_another_process(model, monkeypatch)
    assert is_frozen(other[0][1:]) is is_frozen(model[0][1:])
    other.append(nn.Linear(8, 3))
    before = _state(other)
    _train(other, torch.optim.SGD(other.parameters(), lr=0.1))
    assert {name[:3].rstrip(".") for name in _changed(before, other)} == {"0.0", "1.w", "1.b"}
    thaw(other)
    before, original = _state(other), _state(model)
    _train(other, torch.optim.SGD(other.parameters(), lr=0.1))
    assert {name for name in before if "running" in name} <= _changed(before, other)
    assert is_frozen(model[0][1])
    assert not _changed(original, model)


def test_thawing_undoes_freezing_and_freezing_twice_is_as_once():
    model = _model()
    model[0][1].weight.requires_grad_(False)
    model[1].eval()
    keys = list(model.state_dict())
    trained = [parameter.requires_grad for parameter in model.parameters()]
    hooks = [(list(m._forward_pre_hooks.values()), list(m._forward_hooks.values())) for m in model.modules()]
    _train(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    modes = [module.training for module in model.modules()]
    freeze(model[0])
    freeze(model)
    assert is_frozen(model)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert list(model.state_dict()) == keys
    model(_data()[0])
    thaw(model)
    assert not any(is_frozen(module) for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert [module.training for module in model.modules()] == modes
    assert [(list(m._forward_pre_hooks.values()), list(m._forward_hooks.values())) for m in model.modules()] == hooks


def test_a_part_thawed_in_a_model_in_evaluation_is_in_evaluation_and_else_in_training():
    model = _model().train()
    freeze(model[0])
    model.eval()
    thaw(model)
    assert not any(module.training for module in model.modules())
    freeze(model[0])
    model.train()(_data()[0])
    thaw(model)
    assert all(module.training for module in model.modules())


def test_a_pass_that_fails_leaves_the_modes():
    model = _model().train()
    freeze(model)
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 5))
    assert all(module.training for module in model.modules())


def test_a_part_is_frozen_where_it_is_called_alone_and_where_it_is_computed_again():
    model = _model().train()
    freeze(model)
    before, (x, _) = _state(model), _data()
    torch.testing.assert_close(model[1](model[0][1:](model[0][0](x))), copy.deepcopy(model).eval()(x), rtol=0, atol=0)
    x.requires_grad_()
    checkpoint(model, x, use_reentrant=False).sum().backward()
    assert x.grad.any()
    assert not _changed(before, model)


def test_one_parameter_alone():
    model = _model()
    freeze_parameter(model, "1.2.bias")
    before = _state(model)
    _train(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))
    assert set(before) - _changed(before, model) == {"1.2.bias", "0.8.num_batches_tracked"}
    with pytest.raises(InputError, match=r"no parameter '1.2.bios' \(did you mean '1.2.bias'"):
        freeze_parameter(model, "1.2.bios")
    thaw(model)
    assert model[1][2].bias.requires_grad


def test_in_a_compiled_model_frozen_after_its_first_pass_too():
    for late in (False, True):
        model = _model()
        model[0] = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        compiled = torch.compile(model, backend="eager")
        if late:
            compiled.train()(_data()[0])
        freeze(compiled._orig_mod[0])
        before = _state(model)
        _train(compiled, torch.optim.SGD(model.parameters(), lr=0.1))
        assert _changed(before, model) == {name for name in before if name.startswith("1.")}
        freeze(compiled)
        assert is_frozen(model)
        assert torch.equal(compiled.train()(_data()[0]), copy.deepcopy(model).eval()(_data()[0]))


def test_in_a_model_spread_over_processes(tmp_path):
    def spread_over_one() -> None:
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
        model, alone = create("resnet8", num_classes=3, in_chans=1), None
        freeze(model.layer1)
        alone = copy.deepcopy(model)
        spread = nn.parallel.DistributedDataParallel(model)
        before = _state(model)
        for net, called in ((model, spread), (alone, alone)):
            x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
            called.train()(x).logsumexp(1).sum().backward()
            torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1).step()
        assert not _changed(_state(alone), model)
        changed = _changed(before, model)
        assert "layer2.0.bn1.running_mean" in changed
        assert not {name for name in changed if name.startswith("layer1")}
        freeze(spread)
        assert is_frozen(model)
        assert is_frozen(spread)

    ended = in_child(spread_over_one)  # which ends without freeing the group: see `ranks.py`
    assert (ended.code, ended.err) == (0, "")
