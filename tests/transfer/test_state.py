"""Weights from a file: nothing in it runs, nothing damaged passes, and what fits goes where it belongs."""

import io
import json
import pickle
import re
import shlex
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from trainwell.errors import InputError
from trainwell.models import resnet8
from trainwell.transfer.state import load_into, read_weights


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _file(path, header, data=b""):
    header = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def _refused(path, words):
    with pytest.raises(InputError, match=words) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------- reading


def test_what_safetensors_wrote_is_read(tmp_path):
    weights = {"a": torch.randn(2, 3), "b": torch.arange(4), "c": torch.randn(3).bfloat16(), "d": torch.tensor(True)}
    save_file(weights, tmp_path / "w.safetensors")
    read = read_weights(str(tmp_path / "w.safetensors"))
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in weights.items())


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.pkl", "w.PICKLE", "w.safetensors", "w"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_by_whatever_name_and_not_run(tmp_path, name, zipped):
    path, made = tmp_path / name, tmp_path / "was-run"
    torch.save(Touch(made), path) if zipped else path.write_bytes(pickle.dumps(Touch(made)))
    _refused(path, "is a pickle, which can run code: if you trust it, convert it by python -c")
    assert not made.exists()
    content = path.read_bytes()
    torch.load(io.BytesIO(content), weights_only=False) if zipped else pickle.loads(content)
    assert made.exists()  # so it would have been


def test_a_pickle_that_is_trusted_is_converted_by_the_line_that_the_message_gives(tmp_path):
    path = tmp_path / "it's $(w).pth"
    torch.save({"a": torch.ones(2), "b": torch.arange(6).view(2, 3).T}, path)
    command = _refused(path, "pickle").partition("convert it by ")[2]
    python, option, code = shlex.split(command)
    assert (python, option) == ("python", "-c")
    exec(code, {})  # with no names but its own, as a process would
    read = read_weights(tmp_path / "it's $(w)-safe.safetensors")
    assert torch.equal(read["b"], torch.arange(6).view(2, 3).T)


@pytest.mark.parametrize("beside", [{"epoch": 3}, {"epoch": 3, "optimizer": {"lr": 0.1}}])
@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_the_line_that_converts_finds_the_weights_of_a_training_script(tmp_path, name, beside):
    path = tmp_path / "checkpoint.pth"
    torch.save({**beside, name: {"a": torch.ones(2), "version": 2}}, path)
    exec(shlex.split(_refused(path, "pickle").partition("convert it by ")[2])[2], {})
    assert {key: value.tolist() for key, value in read_weights(tmp_path / "checkpoint-safe.safetensors").items()} == {
        "a": [1.0, 1.0]
    }


_SPAN = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE = {
    "nothing": b"",
    "half a length": b"\1\0\0",
    "a header of 2^60 bytes": struct.pack("<Q", 1 << 60) + b"{}",
    "a header longer than the file": struct.pack("<Q", 1 << 20) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"nope",
    "text": b"<!DOCTYPE html><html>not found</html>",
}
HEADERS = {
    "offsets that overlap": {"a": _SPAN, "b": {**_SPAN, "data_offsets": [4, 12]}},
    "an unknown type": {"a": {**_SPAN, "dtype": "PICKLE"}},
    "more than the file has": {"a": {**_SPAN, "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
    "a shape that overflows": {"a": {**_SPAN, "shape": [1 << 62, 1 << 62]}},
    "another size than its shape's": {"a": {**_SPAN, "shape": [3]}},
    "a gap": {"a": {**_SPAN, "data_offsets": [4, 12]}},
    "a negative shape": {"a": {**_SPAN, "shape": [-2]}},
    "a list": {"a": [1, 2]},
}


@pytest.mark.parametrize("kind", [*HOSTILE, *HEADERS])
def test_damaged_and_hostile_files_are_refused_in_one_line(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    path.write_bytes(HOSTILE[kind]) if kind in HOSTILE else _file(path, HEADERS[kind], bytes(12))
    _refused(path, "is no whole safetensors file .*: download or save it again")


def test_what_is_missing_cut_off_empty_or_not_finite_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    _refused(path, "there is no file .*w.safetensors")
    _refused(tmp_path, "there is no file")
    whole = save({"a": torch.ones(100), "b.c": torch.ones(3)})
    path.write_bytes(whole[:-1])
    _refused(path, "no whole safetensors file")
    save_file({}, path)
    _refused(path, "holds no weights")
    for bad in (float("nan"), float("inf"), float("-inf")):
        save_file({"a": torch.ones(100), "b.c": torch.tensor([0.0, bad]).half()}, path)
        _refused(path, "b.c is not finite everywhere")
    save_file({"a": torch.ones(4).to(torch.float8_e4m3fn)}, path)
    _refused(path, "a is of type float8_e4m3fn")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 300))
def test_any_change_to_a_file_gives_finite_weights_or_one_line(tmp_path, changes, kept):
    content = bytearray(save({"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2), "n": torch.tensor(3)}))
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "w.safetensors"
    path.write_bytes(content[:kept] if kept < len(content) else content)
    told = "one line"
    try:
        assert all(value.isfinite().all() for value in read_weights(path).values())
    except InputError as error:
        told = str(error)
    assert "\n" not in told


# ---------------------------------------------------------------------- fitting


def _tensors(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _small(classes=3, channels=3):
    torch.manual_seed(classes)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(classes))


def _pair(there=3, here=2, channels=(3, 3)):
    """Returns two models of another number of classes, and of channels, that have nothing in common."""
    pair = _small(there, channels[0]), _small(here, channels[1])
    for model, chans in zip(pair, channels, strict=True):
        model(torch.randn(5, chans, 5, 5))  # gives the lazy layer its shape, and batch norm its statistics
    return pair


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "_orig_mod.", "_orig_mod.module.net."])
@pytest.mark.parametrize("head_too", [True, False])
def test_weights_fit_behind_any_prefix_that_most_share(prefix, head_too):
    there, here = _pair(3, 3)
    weights = {(prefix if head_too or name[0] != "3" else "") + name: value for name, value in _tensors(there).items()}
    match = load_into(here, weights)
    assert len(match.matched) == len(weights) == 9
    assert (match.reinitialised, match.left_over, match.sentence()) == ((), (), "9 of 9 tensors matched")
    assert all(torch.equal(value, there.state_dict()[name]) for name, value in here.state_dict().items())


def test_weights_fit_into_a_model_that_has_a_prefix_itself_or_is_wrapped():
    there, here = _pair(3, 3)
    for model in (nn.ModuleDict({"net": here}), nn.DataParallel(here)):
        nn.init.zeros_(here[0].weight)
        match = load_into(model, {f"module.{name}": value for name, value in _tensors(there).items()})
        assert not match.reinitialised
        assert not match.left_over
        assert torch.equal(here[0].weight, there[0].weight)


def test_the_head_may_differ_in_shape_or_be_missing_and_stays_as_it_is():
    there, here = _pair(1000, 2)
    before = here[3].weight.clone()
    match = load_into(here, _tensors(there), head="3")
    assert match.sentence() == "7 of 9 tensors matched; 3.weight, 3.bias are new (1000 classes there, 2 here)"
    assert str(match) == match.sentence()
    assert match.wrong_shape == (("3.weight", (1000, 36), (2, 36)), ("3.bias", (1000,), (2,)))
    assert match.left_over == ()
    assert torch.equal(here[3].weight, before)
    assert torch.equal(here[1].running_var, there[1].running_var)
    headless = {name: value for name, value in _tensors(there).items() if name[0] != "3"}
    match = load_into(here, {**headless, "projector.weight": torch.ones(2)}, head="3")
    assert match.sentence() == (
        "7 of 9 tensors matched; 3.weight, 3.bias are new; 1 in the file not used (projector.weight)"
    )


def test_a_half_match_is_refused_before_anything_changes_unless_it_is_asked_for():
    there, here = _pair(3, 2)
    before, weights = _tensors(here), _tensors(there)
    weights["0.weight"] = torch.ones(4, 3, 5, 5)
    del weights["1.weight"]
    with pytest.raises(
        InputError, match=r"2 of its 9 tensors .*first 0.weight \(4×3×5×5 there, 4×3×3×3 here\)"
    ) as error:
        load_into(here, weights, head="3")
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in here.state_dict().items())
    match = load_into(here, weights, head="3", partial=True)
    assert match.reinitialised == ("0.weight", "1.weight", "3.weight", "3.bias")
    assert torch.equal(here[0].weight, before["0.weight"])
    assert torch.equal(here[0].bias, there[0].bias)
    with pytest.raises(InputError, match="3.weight"):  # which head it has nobody said
        load_into(here, _tensors(there))


def test_weights_of_something_else_are_refused_even_in_part():
    _, here = _pair()
    for weights in ({"encoder.x": torch.ones(3)}, {"3.weight": here[3].weight.data, "3.bias": here[3].bias.data}):
        with pytest.raises(InputError, match="do not fit the model"):
            load_into(here, weights, head="3", partial=True)


def test_two_models_in_one_file_are_not_guessed_between():
    there, here = _pair(3, 3)
    weights = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in _tensors(there).items()}
    with pytest.raises(InputError, match="8 of its 8"):
        load_into(here, weights)


def test_counters_may_be_missing_and_quantised_weights_are_none():
    there, here = _pair(3, 3)
    weights = {name: value for name, value in _tensors(there).items() if "num_batches" not in name}
    assert load_into(here, weights).sentence() == "8 of 8 tensors matched"
    with pytest.raises(InputError, match="1 of its 9"):
        load_into(here, {**_tensors(there), "0.weight": torch.ones(4, 3, 3, 3, dtype=torch.int8)})


def test_weights_of_half_precision_are_taken_in_the_models():
    there, here = _pair(3, 3)
    load_into(
        here, {name: value.half() if value.is_floating_point() else value for name, value in _tensors(there).items()}
    )
    assert here[0].weight.dtype == torch.float32
    torch.testing.assert_close(here[0].weight, there[0].weight, rtol=1e-3, atol=1e-3)


def test_a_grey_image_gives_the_first_convolutions_output_for_its_copy_in_each_channel():
    there, here = _pair(3, 2, (3, 1))
    match = load_into(here, _tensors(there), head="3")
    assert match.channels == ("0.weight", 3, 1)
    assert "0.weight summed from 3 channels to 1" in match.sentence()
    grey = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(here[0](grey), there[0](grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(("given_", "wanted"), [(3, 6), (3, 9), (1, 2), (1, 3), (1, 5)])
def test_copies_of_an_image_give_the_first_convolutions_output_for_it(given_, wanted):
    there, here = _pair(3, 2, (given_, wanted))
    assert "repeated" in load_into(here, _tensors(there), head="3").sentence()
    image = torch.rand(2, given_, 5, 5)
    torch.testing.assert_close(here[0](image.repeat(1, wanted // given_, 1, 1)), there[0](image))


def test_four_channels_are_the_three_and_the_first_again_times_three_quarters():  # timm's documentation of in_chans
    there, here = _pair(3, 2, (3, 4))
    load_into(here, _tensors(there), head="3")
    torch.testing.assert_close(here[0].weight, there[0].weight[:, [0, 1, 2, 0]] * 0.75)


def test_other_channels_than_images_have_are_no_match():
    there, here = _pair(3, 2, (7, 3))
    with pytest.raises(InputError, match="0.weight"):
        load_into(here, _tensors(there), head="3")


def test_a_million_dots_in_a_name_cost_nothing():
    model = resnet8(in_chans=1)
    match = load_into(model, {**_tensors(model), "." * 1_000_000: torch.ones(1)})
    assert len(match.left_over) == 1


@given(st.dictionaries(st.text("ab.", max_size=6), st.sampled_from([(2,), (3,), (2, 3)]), max_size=6))
def test_each_tensor_of_the_model_is_told_once_and_each_of_the_file_at_most_once(shapes):
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})
    weights = {"a.weight": torch.ones(2, 3)} | {name: torch.ones(shape) for name, shape in shapes.items()}
    match = load_into(model, weights, partial=True)
    assert sorted((*match.matched, *match.reinitialised)) == sorted(model.state_dict())
    assert set(match.left_over) <= weights.keys()
    assert re.fullmatch(r"[1-4] of 4 tensors matched.*", match.sentence())
