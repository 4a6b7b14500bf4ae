"""Pretrained models: what comes out of them is what came out of the model that the weights are from."""

import dataclasses
import functools
import http.server
import importlib
import json
import pickle
import sys
import threading
import types
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save, save_file
from torch import nn

from trainwell.errors import InputError
from trainwell.models import NAMES, create, resnet
from trainwell.transfer.backbones import load_backbone, rebuild
from trainwell.transfer.hub import fetch, timm_layout
from trainwell.transfer.surgery import head_inputs

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


# ---------------------------------------------------------------------- ResNets, written out once more


def _weights(depths, *, bottleneck=False, width=64, small=False, channels=3, classes=1000):
    """Returns random weights of a residual network by torchvision's names."""
    draw = torch.Generator().manual_seed(sum(depths))
    weights = {}

    def convolution(name, out, given, kernel):
        weights[f"{name}.weight"] = torch.randn(out, given, kernel, kernel, generator=draw) / (given * kernel**2) ** 0.5

    def norm(name, chans):
        for what, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            weights[f"{name}.{what}"] = low + torch.rand(chans, generator=draw)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("conv1", width, channels, 3 if small else 7)
    norm("bn1", width)
    given = width
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        out = inner * (4 if bottleneck else 1)
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            sizes = [(1, given, inner), (3, inner, inner), (1, inner, out)] if bottleneck else [
                (3, given, inner), (3, inner, inner)
            ]  # fmt: skip
            for number, (kernel, before, after) in enumerate(sizes, 1):
                convolution(f"{name}.conv{number}", after, before, kernel)
                norm(f"{name}.bn{number}", after)
            if block == 0 and (given != out or stage > 0):
                convolution(f"{name}.downsample.0", out, given, 1)
                norm(f"{name}.downsample.1", out)
            given = out
    weights["fc.weight"] = torch.randn(classes, given, generator=draw)
    weights["fc.bias"] = torch.randn(classes, generator=draw)
    return weights


def _features(weights, x):
    """Returns what comes to `fc`, by torch's functions alone."""

    def norm(x, name):
        mean, var, weight, bias = (weights[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)

    def convolution(x, name, stride=1):
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    small = weights["conv1.weight"].shape[-1] == 3
    x = F.relu(norm(convolution(x, "conv1", 1 if small else 2), "bn1"))
    x = x if small else F.max_pool2d(x, 3, 2, 1)
    names = sorted({".".join(name.split(".")[:2]) for name in weights if name.startswith("layer")})
    for name in sorted(names, key=lambda name: [int(part) for part in name.removeprefix("layer").split(".")]):
        stride = 2 if name.endswith(".0") and name != "layer1.0" else 1
        strides = [1, stride, 1] if f"{name}.conv3.weight" in weights else [stride, 1]  # the bottleneck's on its 3×3
        shortcut, out = x, x
        if f"{name}.downsample.0.weight" in weights:
            shortcut = norm(convolution(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        for number, step in enumerate(strides, 1):
            out = norm(convolution(out, f"{name}.conv{number}", step), f"{name}.bn{number}")
            out = F.relu(out) if number < len(strides) else out
        x = F.relu(out + shortcut)
    return x.mean((2, 3))


LAYOUTS = {
    "resnet18": {"depths": (2, 2, 2, 2), "width": 16},
    "resnet34": {"depths": (3, 4, 6, 3), "width": 8},
    "resnet50": {"depths": (3, 4, 6, 3), "width": 8, "bottleneck": True},
    "resnet8": {"depths": (1, 1, 1), "width": 16, "small": True},
    "resnet20": {"depths": (3, 3, 3), "width": 24, "small": True, "channels": 1},
    "resnet56": {"depths": (9, 9, 9), "width": 4, "small": True},
}


def _same_features(model, weights, channels=3):
    x = torch.randn(2, channels, 40, 40, generator=torch.Generator().manual_seed(3))
    expected = _features(weights, x)
    with torch.no_grad():
        found = head_inputs(model.eval(), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_of_torchvisions_names_gives_its_features_and_a_new_head(tmp_path, name):
    weights = _weights(**LAYOUTS[name])
    channels = LAYOUTS[name].get("channels", 3)
    save_file(weights, tmp_path / "w.safetensors")
    backbone = load_backbone(tmp_path / "w.safetensors", num_classes=3, in_chans=channels)
    assert (backbone.architecture, backbone.source) == (name, str(tmp_path / "w.safetensors"))
    assert (backbone.img_size, backbone.licence) == (None, None)
    assert backbone.match.sentence() == (
        f"{len(weights) - 2} of {len(weights)} tensors matched; fc.weight, fc.bias are new (1000 classes there, 3 here)"
    )
    _same_features(backbone.model, weights, channels)
    assert backbone.model(torch.randn(2, channels, 40, 40)).tolist() == [[0, 0, 0]] * 2
    again = rebuild(name, json.loads(json.dumps(backbone.config)), num_classes=3, in_chans=channels)
    again.load_state_dict(backbone.model.state_dict())


@pytest.mark.parametrize(("name", "classes", "imagenet"), [
    ("resnet18", 1_000, True), ("resnet34", 1_000, True), ("resnet50", 1_000, True), ("resnet18", 365, False),
    ("resnet8", 1_000, False),
])  # fmt: skip
def test_a_file_of_imagenets_classes_is_normalised_as_torchvision_and_timm_do(tmp_path, name, classes, imagenet):
    save_file(_weights(**LAYOUTS[name], classes=classes), tmp_path / "w.safetensors")
    backbone = load_backbone(tmp_path / "w.safetensors", num_classes=3)
    figures = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if imagenet else (None, None)
    assert (backbone.mean, backbone.std) == figures
    assert backbone.img_size is None
    if imagenet:
        assert load_backbone(tmp_path / "w.safetensors", num_classes=3, in_chans=1).mean == pytest.approx((0.449,))


def test_the_head_is_new_even_for_as_many_classes_and_the_match_can_be_written_as_json(tmp_path):
    weights = _weights((1, 1, 1), width=4, small=True, classes=3)
    save_file({f"module.{name}": value for name, value in weights.items()}, tmp_path / "w.safetensors")
    backbone = load_backbone(str(tmp_path / "w.safetensors"), model="resnet8", num_classes=3, in_chans=1)
    assert not backbone.model.fc.weight.any()
    told = json.loads(json.dumps(dataclasses.asdict(backbone.match)))
    for match in (backbone.match, type(backbone.match)(**told)):
        assert match.sentence() == (
            "54 of 56 tensors matched; fc.weight, fc.bias are new; conv1.weight summed from 3 channels to 1"
        )


def test_files_whose_network_is_another_are_refused_in_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    weights = _weights((1, 1, 1), width=4, small=True)
    others = {
        "another depth": _weights((1, 2, 1), width=4, small=True),
        "more in a block": {**weights, "layer1.0.se.fc1.weight": torch.ones(2, 2, 1, 1)},
        "deep blocks": {**weights, "layer1.0.conv3.weight": torch.ones(2, 2, 1, 1)},
        "no residual network": {"encoder.weight": torch.ones(2, 2)},
    }
    for kind, other in others.items():
        save_file(other, path)
        with pytest.raises(InputError, match="is none of resnet8, .* say which with model=") as error:
            load_backbone(path, num_classes=2)
        assert "\n" not in str(error.value), kind
    for name, shape in {"layer1.0.conv1.weight": (8, 4, 3, 3), "conv1.weight": (0, 3, 3, 3)}.items():
        save_file({**weights, name: torch.ones(shape)}, path)
        with pytest.raises(InputError, match="do not fit the model"):
            load_backbone(path, num_classes=2)
    save_file(weights, path)
    with pytest.raises(InputError, match="do not fit the model.*first layer1.1"):
        load_backbone(path, model="resnet14", num_classes=2)
    with pytest.raises(InputError, match=r"no pretrained weights for a model 'resnet19' \(did you mean 'resnet1"):
        load_backbone(path, model="resnet19", num_classes=2)


@pytest.mark.parametrize("source", ["w", "timm/resnet18.a1_in1k", "", "nothing.safetensors"])
def test_what_is_not_there_is_said_together_with_what_could_be(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="pretrained weights are in embedded, a run's folder, .* hub:NAME"):
        load_backbone(source, num_classes=2)


# ---------------------------------------------------------------------- runs


def _run(folder, name="resnet8", **changes):
    folder.mkdir()
    model = create(name, num_classes=4, in_chans=3, in_features=5)
    save_file(model.state_dict(), folder / "model.safetensors")
    info = {
        "model": {"name": name, "num_classes": 4, "in_chans": 3, "img_size": 32, "in_features": 3072},
        "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "given": {"model": False}, "backbone": None,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(info | changes))
    return model


def test_a_run_gives_its_weights_and_how_it_normalised(tmp_path):
    model = _run(tmp_path / "run").eval()
    backbone = load_backbone(tmp_path / "run", num_classes=2)
    assert (backbone.architecture, backbone.img_size) == ("resnet8", 32)
    assert (backbone.mean, backbone.std) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(head_inputs(backbone.model.eval(), x), head_inputs(model, x))
    grey = load_backbone(tmp_path / "run", num_classes=2, in_chans=1)
    assert grey.mean == pytest.approx((0.5,))
    assert load_backbone(tmp_path / "run", num_classes=2, in_chans=4).std == (0.1, 0.2, 0.3, 0.1)


def test_a_run_that_began_as_another_width_is_made_by_what_it_says_of_that(tmp_path):
    _run(tmp_path / "run", backbone={"architecture": "resnet8", "config": {"width": 4}})
    save_file(_weights((1, 1, 1), width=4, small=True), tmp_path / "run" / "model.safetensors")
    assert load_backbone(tmp_path / "run", num_classes=2).model.fc.in_features == 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": "0.5"}, "run.json is damaged: mean"), ({"std": [0.1, 0, 0.1]}, "run.json is damaged: std"),
        ({"mean": [True, 1, 1]}, "mean"), ({"model": []}, "no pretrained weights for a model"),
        ({"model": "resnet8"}, "model is no table"), ({"model": {"name": "os:system"}}, "no pretrained weights for"),
        ({"given": {"model": True}}, "with a model of yours"), ({"backbone": {"config": {"width": "9"}}}, "width"),
        ({"backbone": {"config": {"width": 10**9}}}, "width"),
    ],
)  # fmt: skip
def test_damaged_runs_are_refused_in_one_line(tmp_path, changes, words):
    _run(tmp_path / "run", **changes)
    with pytest.raises(InputError, match=words) as error:
        load_backbone(tmp_path / "run", num_classes=2)
    assert "\n" not in str(error.value)


def test_runs_that_hold_no_images_or_no_json_are_refused(tmp_path):
    _run(tmp_path / "features", "mlp")
    with pytest.raises(InputError, match="no pretrained weights for a model 'mlp'"):
        load_backbone(tmp_path / "features", num_classes=2)
    _run(tmp_path / "run")
    for content in ("", "[" * 100_000, "[]", "{"):
        (tmp_path / "run" / "run.json").write_text(content)
        with pytest.raises(InputError, match="run.json"):
            load_backbone(tmp_path / "run", num_classes=2)


def test_all_of_our_residual_networks_can_be_rebuilt_with_a_head_of_0():
    for name in NAMES[1:]:
        made = rebuild(name, {"width": 2}, num_classes=2, in_chans=1)
        assert made.state_dict().keys() == getattr(resnet, name)(width=2).state_dict().keys()
        assert not made.fc.weight.any()


# ---------------------------------------------------------------------- the hub


def _config(**changes):
    data = {**IMAGENET, "input_size": [3, 224, 224], "license": "apache-2.0", "classifier": "fc"}
    return {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": data, **changes}


def _files(folder, weights, config, card="---\nlicense: cc-by-4.0\n---\n# A model\n"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if card:
        (folder / "README.md").write_text(card)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's, and no network."""

    def fail(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", fail)
    return tmp_path / "hub"


def _cached(cache, name, *args):
    """Lays a repository out as the hub's client does."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return _files(folder / "snapshots" / COMMIT, *args)


def _nothing():
    """Returns weights for where it does not matter which."""
    return {"conv1.weight": torch.ones(1)}


@functools.cache
def _resnet18():
    return _weights((2, 2, 2, 2), classes=7)


@pytest.mark.parametrize("name", ["a/b", f"a/b@{COMMIT}"])
@pytest.mark.parametrize("offline", [True, False])
def test_a_repository_in_the_local_cache_needs_no_network(cache, name, offline):
    folder = _cached(cache, "a/b", _nothing(), _config())
    said = []
    assert fetch(name, offline, said.append) == folder
    assert said == []


def test_another_commit_or_half_a_download_in_the_local_cache_is_not_taken(cache):
    folder = _cached(cache, "a/b", _nothing(), _config())
    with pytest.raises(InputError, match="is not on this machine"):
        fetch(f"a/b@{COMMIT[::-1]}", True, print)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="is not on this machine"):
        fetch("a/b", True, print)


def test_a_model_on_the_hub_gives_its_features_and_what_the_hub_says_of_it(cache):
    weights = _resnet18()
    _cached(cache, "timm/resnet18.a1_in1k", weights, _config())
    backbone = load_backbone(f"hub:timm/resnet18.a1_in1k@{COMMIT}", num_classes=2, offline=True)
    _same_features(backbone.model, weights)
    assert backbone.source == f"hub:timm/resnet18.a1_in1k@{COMMIT}"
    assert (backbone.architecture, backbone.config, backbone.licence) == ("resnet18", {}, "cc-by-4.0")
    assert (backbone.mean, backbone.std, backbone.img_size) == (*map(tuple, IMAGENET.values()), 224)
    assert "(7 classes there, 2 here)" in backbone.match.sentence()


@pytest.mark.parametrize(
    "card", ["", "no table", "---\nlicense: [\n---\n", "---\nx: !!python/object/apply:os.abort []\n---"]
)
def test_a_card_that_says_nothing_leaves_the_licence_to_the_config(tmp_path, card):
    assert timm_layout(_files(tmp_path, _nothing(), _config(), card), "here").licence == "apache-2.0"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (_config(architecture="vit_tiny"), "is no plain resnet18, .* but 'vit_tiny': take timm:NAME"),
        (_config(architecture="resnet8"), "is no plain"), (_config(model_args={"stem_type": "deep"}), "is no plain"),
        ({"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}, "or transformers:NAME"),
        (_config(pretrained_cfg={"mean": [0.5, "x", 1]}), "config.json is damaged: mean"), ([], "no table"),
    ],
)  # fmt: skip
def test_other_architectures_and_damaged_configs_of_the_hub_are_refused(cache, config, words):
    _cached(cache, "a/b", _nothing(), config)
    with pytest.raises(InputError, match=words) as error:
        load_backbone("hub:a/b", num_classes=2)
    assert "\n" not in str(error.value)


def test_what_is_not_in_the_cache_is_not_asked_for_while_offline(cache, monkeypatch):
    with pytest.raises(InputError, match="^a/b of the hub is not on this machine"):
        load_backbone("hub:a/b", num_classes=2, offline=True)
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids a download") as error:
        load_backbone("hub:a/b", num_classes=2)
    assert "\n" not in str(error.value)


class _Hub(http.server.BaseHTTPRequestHandler):
    """A hub of one repository, a/b, by the routes and headers that the client relies on."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append(self.path)
        headers, status = {"X-Error-Code": "RepoNotFound"}, 404
        body = b""
        if "/private" in self.path:
            headers, status = {"X-Error-Code": "GatedRepo"}, 403
        elif self.path.startswith(("/api/models/a/b", "/a/b/resolve")) and "nothing" in self.path:
            headers = {"X-Error-Code": "RevisionNotFound"}
        elif self.path.startswith("/api/models/a/b"):
            listed = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            told = {"id": "a/b", "sha": COMMIT, "siblings": listed, "cardData": {"license": "mit"}, "tags": []}
            headers, status, body = {"Content-Type": "application/json"}, 200, json.dumps(told).encode()
        elif self.path.startswith("/a/b/resolve/main/"):
            name = self.path.rpartition("/")[2]
            headers, status, body = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, 200, self.files[name]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, with an empty cache before it."""
    folder = _files(tmp_path / "files", _nothing(), _config(), "---\nlicense: mit\n---\n")
    _Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    _Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True).start()
    there = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", functools.partial(huggingface_hub.HfApi, endpoint=there, token=False))
    yield server
    server.shutdown()
    server.server_close()


def test_size_and_licence_are_said_before_the_download_which_happens_once(hub):
    _Hub.files["model.safetensors"] = save(_resnet18())
    said = []

    def say(text):
        said.append(text)
        assert not any("/resolve/" in path for path in _Hub.asked)

    megabytes = sum(map(len, _Hub.files.values())) / 1e6
    first = load_backbone("hub:a/b", num_classes=2, say=say)
    assert said == [f"downloading a/b from the Hugging Face hub: {megabytes:.1f} MB, licence mit"]
    assert (first.licence, first.source) == ("mit", f"hub:a/b@{COMMIT}")
    _same_features(first.model, _resnet18())
    requests = len(_Hub.asked)
    for name in ("a/b", f"a/b@{COMMIT}"):
        folder = fetch(name, False, say)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == _Hub.files
    assert len(said) == 1
    assert len(_Hub.asked) == requests


def test_a_repository_with_pickles_alone_is_refused_before_any_download(hub):
    _Hub.files = {"pytorch_model.bin": b"\x80\2", "config.json": b"{}"}
    with pytest.raises(InputError, match="a/b of the hub has no model.safetensors: other formats can run code"):
        load_backbone("hub:a/b", num_classes=2)
    assert not any("/resolve/" in path for path in _Hub.asked)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/none", "there is no repository a/none on the hub"), ("x/private", "accept its terms"),
        ("a/b@nothing", "no such revision"), ("a b/c", "is no name of the hub"), ("a/b/c/d", "is no name of the hub"),
        ("", "hub"),
    ],
)  # fmt: skip
def test_what_the_hub_has_not_is_said_in_one_line(hub, name, words):
    with pytest.raises(InputError, match=words) as error:
        load_backbone(f"hub:{name}", num_classes=2)
    assert "\n" not in str(error.value)


def test_no_way_to_the_hub_is_said_in_one_line(hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(InputError, match="a/b could not be had from the hub .*check the network") as error:
        load_backbone("hub:a/b", num_classes=2)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def _vit(transformers, **changes):
    torch.manual_seed(0)
    options = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**options, image_size=16, patch_size=8, num_labels=5, **changes)
    return transformers.ViTForImageClassification(config).eval()


def _resnet(transformers):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=5
    )
    model = transformers.ResNetForImageClassification(config)
    model(torch.randn(4, 3, 32, 32))  # in training: batch norm has statistics
    return model.eval()


def _head(model):
    head = model.classifier
    return head[-1] if isinstance(head, nn.Sequential) else head


def _body(model, x):
    """Returns what comes to the last layer of a model of transformers."""
    seen = []
    hook = _head(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(pixel_values=x)
    hook.remove()
    return seen[0]


PROCESSOR = {
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.2],
    "size": {"height": 16, "width": 16},
}


@pytest.mark.parametrize("make", [_vit, _resnet])
@pytest.mark.parametrize("half", [False, True])
def test_a_model_that_transformers_saved_gives_its_features_as_logits_of_a_new_head(tmp_path, transformers, make, half):
    theirs = make(transformers)
    (theirs.half() if half else theirs).save_pretrained(tmp_path)
    theirs = theirs.float()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    backbone = load_backbone(f"transformers:{tmp_path}", num_classes=3, offline=True)
    assert backbone.architecture == backbone.source == f"transformers:{tmp_path}"
    assert (backbone.mean, backbone.std, backbone.img_size) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 16)
    x = torch.randn(2, 3, 16, 16)
    backbone.model.eval()
    torch.testing.assert_close(head_inputs(backbone.model, x), _body(theirs, x), rtol=1e-5, atol=1e-5)
    assert backbone.model(x).tolist() == [[0, 0, 0]] * 2
    assert all(parameter.dtype == torch.float32 for parameter in backbone.model.parameters())
    assert "are new (5 classes there, 3 here)" in backbone.match.sentence()
    assert len(backbone.match.matched) == len(theirs.state_dict()) - 2
    again = rebuild(backbone.architecture, json.loads(json.dumps(backbone.config)), num_classes=3, in_chans=3).eval()
    again.load_state_dict(backbone.model.state_dict())
    assert torch.equal(head_inputs(again, x), head_inputs(backbone.model, x))


def test_a_grey_image_gives_what_its_copy_in_each_channel_gives_transformers(tmp_path, transformers):
    theirs = _vit(transformers)
    theirs.save_pretrained(tmp_path)
    backbone = load_backbone(f"transformers:{tmp_path}", num_classes=2, in_chans=1)
    grey = torch.randn(2, 1, 16, 16)
    found = head_inputs(backbone.model.eval(), grey)
    torch.testing.assert_close(found, _body(theirs, grey.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)
    assert "summed from 3 channels to 1" in backbone.match.sentence()


def test_a_model_without_a_head_is_taken_and_one_that_lacks_more_is_not(tmp_path, transformers):
    theirs = _vit(transformers)
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    body = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file({**body, "decoder.weight": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    match = load_backbone(f"transformers:{tmp_path}", num_classes=2).match
    assert (
        "net.classifier.weight, net.classifier.bias are new; 1 in the file not used (decoder.weight)"
        in match.sentence()
    )
    del body["vit.embeddings.cls_token"]
    save_file(body, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="1 of its .* first net.vit.embeddings.cls_token"):
        load_backbone(f"transformers:{tmp_path}", num_classes=2)
    save_file({**body, "vit.embeddings.cls_token": torch.full((1, 1, 16), torch.nan)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not finite"):
        load_backbone(f"transformers:{tmp_path}", num_classes=2)


def test_transformers_model_on_the_hub_is_told_with_its_commit(cache, tmp_path, transformers):
    _vit(transformers).save_pretrained(tmp_path / "saved")
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    folder = _cached(cache, "a/vit", weights, json.loads((tmp_path / "saved" / "config.json").read_text()))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    backbone = load_backbone("transformers:a/vit", num_classes=2)
    assert (backbone.source, backbone.architecture) == (f"transformers:a/vit@{COMMIT}", "transformers:a/vit")
    assert (backbone.licence, backbone.img_size) == ("cc-by-4.0", 16)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_folder_with_a_pickle_or_code_is_refused_and_nothing_of_it_runs(tmp_path, transformers):
    made = tmp_path / "was-run"
    _vit(transformers).save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(made)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((tmp_path / "config.json").read_text())
    code = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    kernel = {"_attn_implementation": "them/kernel", "attn_implementation": "them/kernel", "use_kernels": True}
    (tmp_path / "config.json").write_text(json.dumps({**config, **kernel, "auto_map": code}))
    backbone = load_backbone(f"transformers:{tmp_path}", num_classes=2)  # known to the library: its own code
    assert not (kernel.keys() | {"auto_map"}) & backbone.config.keys()
    rebuild(backbone.architecture, {**backbone.config, **kernel, "auto_map": code}, num_classes=2, in_chans=3)
    wrapper = {"model_type": "timm_wrapper", "model_args": {"checkpoint_path": str(tmp_path / "evil.pth")}}
    for change in ({"model_type": "evil"}, {"quantization_config": {"quant_method": "bitsandbytes"}}, wrapper):
        (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": code, **change}))
        with pytest.raises(InputError) as error:
            load_backbone(f"transformers:{tmp_path}", num_classes=2)
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(made)))
    with pytest.raises(InputError, match="transformers does not load") as error:
        load_backbone(f"transformers:{tmp_path}", num_classes=2)
    assert "\n" not in str(error.value)
    assert not made.exists()


@pytest.mark.parametrize(
    ("changes", "figures"),
    [
        ({"do_normalize": False}, ((0.0,) * 3, (1.0,) * 3, 16)),
        ({"do_rescale": False}, (None, None, 16)),
        ({"rescale_factor": 1 / 127.5}, (None, None, 16)),
        ({"size": 24}, ((0.5, 0.4, 0.3), (0.2,) * 3, 24)),
        ({"size": {"shortest_edge": 28}}, ((0.5, 0.4, 0.3), (0.2,) * 3, 28)),
        ({"do_center_crop": True, "crop_size": {"height": 20, "width": 20}}, ((0.5, 0.4, 0.3), (0.2,) * 3, 20)),
        (None, (None, None, 16)),
    ],
)
def test_what_is_done_to_images_is_read_from_the_processors_config(tmp_path, transformers, changes, figures):
    _vit(transformers).save_pretrained(tmp_path)
    if changes is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | changes))
    backbone = load_backbone(f"transformers:{tmp_path}", num_classes=2)
    assert (backbone.mean, backbone.std, backbone.img_size) == figures


# ---------------------------------------------------------------------- timm


@functools.cache
def _thin_resnet18():
    return _weights((2, 2, 2, 2), width=8, classes=7)


def _timm_alike(monkeypatch):
    """Puts a module with timm's documented interface in its place, as timm cannot be imported beside a CPU-only torch.

    Its only network is a residual network with torchvision's names, which is what timm's resnet18 is, but thin.
    """
    made = []

    def create_model(model_name, pretrained=False, *, num_classes=1000, in_chans=3, **kwargs):
        made.append((model_name, pretrained, kwargs))
        if model_name.partition(".")[0] != "resnet18":
            raise RuntimeError(f"Unknown model ({model_name})")
        net = resnet.resnet18(num_classes=num_classes, in_chans=in_chans, width=8)
        net.pretrained_cfg = {"classifier": "fc"}
        return net

    def get_pretrained_cfg(model_name):
        if model_name == "resnet18.bad":
            raise RuntimeError("Invalid pretrained tag (bad) for resnet18.")
        hub = {"resnet18.a1_in1k": "timm/resnet18.a1_in1k", "resnet18": None}
        return types.SimpleNamespace(hf_hub_id=hub[model_name]) if model_name in hub else None

    alike = types.SimpleNamespace(
        create_model=create_model, get_pretrained_cfg=get_pretrained_cfg, list_models=lambda: ["resnet18", "resnet34"]
    )
    monkeypatch.setitem(sys.modules, "timm", alike)
    return made


def test_a_file_of_weights_can_be_said_to_be_of_a_model_of_timms(tmp_path, monkeypatch):
    _timm_alike(monkeypatch)
    save_file(_thin_resnet18(), tmp_path / "w.safetensors")
    backbone = load_backbone(tmp_path / "w.safetensors", model="timm:resnet18", num_classes=2)
    assert (backbone.architecture, backbone.config) == ("timm:resnet18", {})
    _same_features(backbone.model, _thin_resnet18())


def test_weights_of_timms_are_had_from_the_hub_by_us_and_put_into_its_model(cache, monkeypatch):
    made = _timm_alike(monkeypatch)
    weights = _thin_resnet18()
    _cached(cache, "timm/resnet18.a1_in1k", weights, _config())
    backbone = load_backbone("timm:resnet18.a1_in1k", num_classes=2)
    _same_features(backbone.model, weights)
    assert backbone.architecture == backbone.source == "timm:resnet18.a1_in1k"
    assert (backbone.mean, backbone.img_size, backbone.licence) == (tuple(IMAGENET["mean"]), 224, "cc-by-4.0")
    rebuild(backbone.architecture, backbone.config, num_classes=2, in_chans=1).load_state_dict(
        load_backbone("timm:resnet18.a1_in1k", num_classes=2, in_chans=1).model.state_dict()
    )
    assert {(name, pretrained) for name, pretrained, _ in made} == {("resnet18.a1_in1k", False)}


def test_a_folder_in_timms_layout_is_made_with_its_arguments_but_loads_nothing_else(tmp_path, monkeypatch):
    made = _timm_alike(monkeypatch)
    weights = _thin_resnet18()
    _files(tmp_path / "model", weights, _config(model_args={"output_stride": 32}))
    backbone = load_backbone(f"timm:{tmp_path / 'model'}", num_classes=2)
    _same_features(backbone.model, weights)
    assert (backbone.architecture, backbone.config) == ("timm:resnet18", {"model_args": {"output_stride": 32}})
    assert made == [("resnet18", False, {"output_stride": 32})]
    for change in ({"model_args": {"checkpoint_path": "evil.pth"}}, {"model_args": {"pretrained": True}}):
        (tmp_path / "model" / "config.json").write_text(json.dumps(_config(**change)))
        with pytest.raises(InputError, match="say what to load, which only you may"):
            load_backbone(f"timm:{tmp_path / 'model'}", num_classes=2)
    (tmp_path / "model" / "config.json").write_text(json.dumps(_config(architecture="hf-hub:evil/model")))
    with pytest.raises(InputError, match="'hf-hub:evil/model' is no name of timm's"):
        load_backbone(f"timm:{tmp_path / 'model'}", num_classes=2)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18.bad", "timm has no weights resnet18.bad .*Invalid pretrained tag"),
        ("resnet19", r"timm has no model resnet19 \(did you mean 'resnet18'\?\)"),
        ("resnet18", "no weights for resnet18"),
    ],
)  # fmt: skip
def test_what_timm_has_not_is_said_in_one_line(cache, monkeypatch, name, words):
    _timm_alike(monkeypatch)
    with pytest.raises(InputError, match=words) as error:
        load_backbone(f"timm:{name}", num_classes=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["timm", "transformers"])
@pytest.mark.parametrize("error", [ImportError("No module"), RuntimeError("operator torchvision::nms does not exist")])
def test_a_library_that_is_missing_or_does_not_import_is_named_with_the_command_that_installs_it(
    monkeypatch, name, error
):
    real = importlib.import_module

    def fail(module, *args):
        if module == name:
            raise error
        return real(module, *args)

    monkeypatch.setattr(importlib, "import_module", fail)
    for use in (
        lambda: load_backbone(f"{name}:x", num_classes=2),
        lambda: rebuild(f"{name}:x", {}, num_classes=2, in_chans=3),
    ):
        with pytest.raises(InputError, match=rf"pip install 'trainwell\[{name}\]'"):
            use()


def test_real_timm_makes_and_loads_where_it_can_be_imported(tmp_path):
    try:
        timm = importlib.import_module("timm")
    except (ImportError, RuntimeError):
        pytest.skip("timm is an optional extra")
    theirs = timm.create_model("resnet18", pretrained=False, num_classes=5).eval()
    _files(tmp_path / "model", theirs.state_dict(), _config())
    backbone = load_backbone(f"timm:{tmp_path / 'model'}", num_classes=2)
    x = torch.randn(2, 3, 64, 64)
    expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    torch.testing.assert_close(head_inputs(backbone.model.eval(), x), expected, rtol=1e-5, atol=1e-5)
