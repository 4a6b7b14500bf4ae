"""A backbone as one file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trainwell.errors import InputError
from trainwell.models import create, resnet
from trainwell.transfer import load_backbone, save_backbone
from trainwell.transfer.surgery import head_inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back(dtype, tmp_path):
    model, path = resnet.resnet14(width=8, num_classes=7), tmp_path / "mine.safetensors"
    save_backbone(
        path, model, architecture="resnet14", config={"width": 8}, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0),
        img_size=24, licence="mit", trained_on="nothing", dtype=dtype,
    )  # fmt: skip
    found = load_backbone(path, num_classes=3)
    assert (found.architecture, found.img_size, found.licence) == ("resnet14", 24, "mit")
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    x = torch.randn(2, 3, 24, 24)
    ours, theirs = (head_inputs(one.eval(), x) for one in (found.model, model))
    close = {torch.float32: 1e-6, torch.float16: 0.01, torch.bfloat16: 0.1}[dtype]
    assert (ours - theirs).norm() < close * theirs.norm()
    assert not any(name.startswith("fc.") for name in load_file(path))


@pytest.mark.parametrize("told", [
    "{", "[]", '"a"', json.dumps({"architecture": "resnet8", "config": 3}),
    json.dumps({"architecture": "os.system", "config": {}}), json.dumps({"architecture": "resnet8", "mean": ["a"]}),
    json.dumps({"architecture": "resnet8", "config": {"width": 10**9}}), "[" * 100_000,
    json.dumps({"architecture": None}),
], ids=lambda told: told[:30])  # fmt: skip
def test_what_a_hostile_file_says_of_itself_is_one_line(told, tmp_path):
    path = tmp_path / "bad.safetensors"
    save_file(create("resnet8", num_classes=2, in_chans=3).state_dict(), path, {"trainwell": told})
    with pytest.raises(InputError) as error:
        load_backbone(path, num_classes=2)
    assert "\n" not in str(error.value)


def test_a_file_of_which_less_is_said_is_read_all_the_same(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file(create("resnet8", num_classes=2, in_chans=3).state_dict(), path, {"format": "pt"})
    assert load_backbone(path, num_classes=2).architecture == "resnet8"


def test_a_wrapped_model_loses_its_head_too_and_what_is_too_large_is_refused(tmp_path):
    model = create("resnet8", num_classes=2, in_chans=3)
    save_backbone(tmp_path / "a.safetensors", nn.DataParallel(model), architecture="resnet8")
    assert not any("fc" in name or "module" in name for name in load_file(tmp_path / "a.safetensors"))
    model.bn1.running_var.fill_(1e6)
    with pytest.raises(InputError, match=r"bn1.running_var has numbers that are too large for torch.float16"):
        save_backbone(tmp_path / "b.safetensors", model, architecture="resnet8", dtype=torch.float16)
    assert not (tmp_path / "b.safetensors").exists()


def test_a_file_that_says_it_is_wider_than_it_is_takes_no_memory(tmp_path):
    path = tmp_path / "small.safetensors"
    save_backbone(path, create("resnet8", num_classes=2, in_chans=3), architecture="resnet8", config={"width": 4096})
    with pytest.raises(InputError, match="says that its width is 4096 channels, and it is 16"):
        load_backbone(path, num_classes=2)
