"""Averages of weights: closed forms, optax, torch's where it is right, and a test for each place where it is not."""

import copy
import math

import optax
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import swa_utils

from trainwell.ensemble import EMA, SWA, LatestK
from trainwell.errors import InputError
from trainwell.train import Checkpoint

SERIES = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12)


def _averaged(make, values, dtype=torch.float64):
    """Returns the average of a model's only weight over some values."""
    model = nn.Linear(1, 1, bias=False, dtype=dtype)
    average = make(model)
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update()
    with average.weights():
        return model.weight.item()


def _train(model, steps, *averages):
    """Walks at random, in training mode, and tells the averages."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        model(torch.randn(8, 3, generator=generator) * 3 + 1)
        for average in averages:
            average.update() if hasattr(average, "update") else average.update_parameters(model)


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


# ---------------------------------------------------------------------- closed forms


@given(SERIES, st.floats(0, 0.9999))
def test_ema_is_the_debiased_sum(values, decay):
    t = len(values)
    weights = [(1 - decay) * decay ** (t - i) for i in range(1, t + 1)]
    expected = math.fsum(w * x for w, x in zip(weights, values, strict=True)) / math.fsum(weights)
    assert _averaged(lambda model: EMA(model, decay), values) == pytest.approx(expected, abs=1e-9)


def test_ema_is_optaxs_debiased():
    values = [1.0, -3.0, 0.5, 7.0, 2.0]
    transform = optax.ema(0.9, debias=True)
    state = transform.init(0.0)
    for value in values:
        expected, state = transform.update(value, state)
    assert _averaged(lambda model: EMA(model, 0.9), values) == pytest.approx(float(expected), rel=1e-6)


@given(SERIES, st.integers(1, 5))
def test_swa_and_the_latest_are_plain_means(values, k):
    assert _averaged(SWA, values) == pytest.approx(math.fsum(values) / len(values), abs=1e-9)
    latest = values[-k:]
    assert _averaged(lambda m: LatestK(m, k), values) == pytest.approx(math.fsum(latest) / len(latest), abs=1e-9)


@pytest.mark.parametrize("make", [SWA, lambda model: EMA(model, 0.0), LatestK])
def test_complex_weights_keep_their_imaginary_part(make):
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
    average = make(model)
    average.update()
    with torch.no_grad():
        model.weight.add_(2j)
    average.update()
    expected = torch.tensor([1 + 4j, 3 + 1j] if isinstance(average, EMA) else [1 + 3j, 3 + 0j])
    assert torch.equal(average.average()["weight"], expected)


def test_an_average_of_a_weight_that_never_changes_is_that_weight_to_the_bit():
    for make in (SWA, EMA, LatestK):
        assert _averaged(make, [0.1] * 7, torch.float32) == torch.tensor(0.1).item()


# ---------------------------------------------------------------------- beside torch


def test_swa_is_torchs():
    model = _net()
    ours, theirs = SWA(model), swa_utils.AveragedModel(model)
    _train(model, 7, ours, theirs)
    for name, p in theirs.module.named_parameters():
        torch.testing.assert_close(ours.average()[name], p.detach(), rtol=1e-6, atol=1e-6)


def test_after_500_steps_torchs_ema_is_60_percent_its_first_iterate_and_ours_is_not():
    values = [1.0] + [0.0] * 500
    model = nn.Linear(1, 1, bias=False)
    theirs = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.999))
    for value in values:
        nn.init.constant_(model.weight, value)
        theirs.update_parameters(model)
    assert theirs.module.weight.item() == pytest.approx(0.606, abs=1e-3)
    assert _averaged(lambda model: EMA(model, 0.999), values) == pytest.approx(0.00154, abs=1e-5)


def test_torch_averages_the_counter_of_batch_norm_and_we_do_not():
    model = _net()
    ours = EMA(model, 0.5)
    theirs = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True)
    _train(model, 9, ours, theirs)
    assert theirs.module[1].num_batches_tracked.item() < 9
    with ours.weights():
        assert model[1].num_batches_tracked.item() == 9


def test_torch_leaves_the_running_statistics_at_the_newest_weights_and_we_average_them():
    model = _net()
    ours, theirs = SWA(model), swa_utils.AveragedModel(model)
    seen = []
    for _ in range(5):
        _train(model, 1, ours, theirs)
        seen.append(model[1].running_mean.clone())
    assert torch.equal(theirs.module[1].running_mean, seen[-1])
    with ours.weights():
        torch.testing.assert_close(model[1].running_mean, torch.stack(seen).mean(0))


def test_torchs_average_of_a_bfloat16_weight_stands_still_and_ours_moves():
    values, decay = [1.0, *[2.0] * 300], 0.999
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    theirs = swa_utils.AveragedModel(model, avg_fn=swa_utils.get_ema_avg_fn(decay))
    ours = EMA(model, decay)
    for value in values:
        nn.init.constant_(model.weight, value)
        theirs.update_parameters(model)
        ours.update()
    assert theirs.module.weight.item() == 1.0
    assert ours.average()["weight"].dtype == torch.float32
    assert ours.average()["weight"].item() > 1.99


def test_names_are_the_bare_models_where_torchs_are_those_of_the_wrapper():
    model = _net()
    ours, theirs = EMA(torch.compile(model)), swa_utils.AveragedModel(torch.compile(model))
    ours.update()
    assert set(ours.state_dict()["weights"]) == {*dict(model.named_parameters()), "1.running_mean", "1.running_var"}
    assert all(name.startswith("module._orig_mod.") for name, _ in theirs.named_parameters())
    plain = EMA(model)
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(plain.average(), ours.average())


def test_names_are_the_same_where_a_part_is_compiled():
    model, plain = _net(), _net()
    for part in (0, 1):
        model[part] = torch.compile(model[part])
    average, other = SWA(model), SWA(plain)
    average.update()
    other.load_state_dict(average.state_dict())
    assert other.average().keys() == {*dict(plain.named_parameters()), "1.running_mean", "1.running_var"}
    nn.init.zeros_(plain[0].weight)
    with other.weights():
        assert torch.equal(plain[0].weight, model[0].weight)
    assert not plain[0].weight.any()


# ---------------------------------------------------------------------- in a loop


@pytest.mark.parametrize("make", [EMA, SWA, lambda model: LatestK(model, 3)])
def test_afterwards_the_model_is_as_before_to_the_bit_even_after_an_error(make):
    model = _net()
    average = make(model)
    _train(model, 5, average)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), average.weights():
        assert not torch.equal(model[0].weight, before["0.weight"])
        model.train()(torch.randn(8, 3))  # moves the running statistics and the counter
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [EMA, SWA, lambda model: LatestK(model, 3)])
def test_a_saved_average_goes_on_to_the_same_bits(make):
    model = _net()
    whole = make(model)
    _train(model, 4, whole)
    again = make(model)
    again.load_state_dict(whole.state_dict() | {"weights": _copied(whole.state_dict()["weights"])})
    _train(model, 4, whole, again)
    assert whole.updates == again.updates == 8
    for name, value in whole.average().items():
        assert torch.equal(value, again.average()[name])


def _copied(saved):
    if isinstance(saved, list):
        return [_copied(item) for item in saved]
    return {name: value.clone() for name, value in saved.items()}


def test_what_is_averaged_stays_when_the_model_is_handed_over():
    model = _net()
    swa = SWA(model)
    _train(model, 3, swa)
    swa.copy_to_model()
    assert torch.equal(model[0].weight, swa.average()["0.weight"])


def test_shared_weights_are_averaged_once_and_stay_shared():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    swa = SWA(model)
    for value in (0.0, 2.0):
        nn.init.constant_(model[0].weight, value)
        swa.update()
    with swa.weights():
        assert model[1].weight is model[0].weight
        assert (model[1].weight == 1).all()


# ---------------------------------------------------------------------- one line for each mistake


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(InputError, match="decay must be at least 0 and below 1"):
        EMA(nn.Linear(1, 1), decay)


def test_an_average_of_nothing_is_refused():
    with pytest.raises(InputError, match=r"no average yet: call update\(\)"), EMA(nn.Linear(1, 1)).weights():
        pass
    with pytest.raises(InputError, match="k must be at least 1"):
        LatestK(nn.Linear(1, 1), 0)


def test_the_average_is_not_averaged_with_itself():
    model = nn.Linear(1, 1)
    ema = EMA(model)
    ema.update()
    with ema.weights():
        with pytest.raises(InputError, match="after the `with` block"):
            ema.update()
        with pytest.raises(InputError, match="already"), ema.weights():
            pass


@pytest.mark.parametrize("whole", [True, False])
def test_while_an_average_is_in_the_model_nobody_takes_it_for_the_weights(whole, tmp_path):
    model = _net()
    part = model if whole else model[0]
    ema, swa, of_part = EMA(model), SWA(model), SWA(part)
    for average in (ema, swa, of_part):
        average.update()
    checkpoint = Checkpoint(tmp_path, model=part)
    copies = []
    with ema.weights():
        with pytest.raises(InputError, match="after the `with` block"):
            swa.update()
        with pytest.raises(InputError, match="after the `with` block"):
            of_part.update()
        with pytest.raises(InputError, match="already"), of_part.weights():
            pass
        for average in (ema, swa):
            with pytest.raises(InputError, match=r"copy_to_model\(\) after the `with` block"):
                average.copy_to_model()
        with pytest.raises(InputError, match="the part 'model' holds an average now, and not its own weights"):
            checkpoint.save(step=1)
        copies.append(copy.deepcopy(model))
    assert list(tmp_path.iterdir()) == []
    SWA(copies[0]).update()  # a copy that was handed over is a model like any other
    checkpoint.save(step=1)
    swa.update()
    with swa.weights():
        pass


@pytest.mark.parametrize("make", [EMA, SWA, LatestK])
@pytest.mark.parametrize("other", [EMA, SWA, LatestK])
def test_the_state_of_another_kind_of_average_is_refused(make, other):
    model = nn.Linear(2, 1)
    saved, ours = other(model), make(model)
    saved.update()
    if make is other:
        ours.load_state_dict(saved.state_dict())
        return
    with pytest.raises(InputError, match=f"another kind of average, {other.__name__}: .* not {make.__name__}"):
        ours.load_state_dict(saved.state_dict())


@pytest.mark.parametrize("make", [EMA, LatestK])
def test_the_average_of_another_model_is_refused_and_told(make):
    ours, other = make(nn.Linear(2, 1)), make(nn.Linear(3, 1))
    other.update()
    with pytest.raises(InputError, match="another model: weight"):
        ours.load_state_dict(other.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_that_never_change_are_what_they_were_to_the_bit(dtype):
    """A mean that adds up first rounds: (x + x + x) / 3 is not x for every seventh number of float64."""
    model = nn.Linear(40, 40).to(dtype)
    start = model.weight.detach().clone()
    for average in (EMA(model, 0.9), SWA(model), LatestK(model, 3), LatestK(model, 7)):
        for _ in range(7):
            average.update()
        average.copy_to_model()
        assert model.weight.equal(start)


def test_there_is_no_latest_average_before_an_update():
    with pytest.raises(InputError, match="call update"):
        LatestK(nn.Linear(2, 1), 3).average()
