import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trainwell.errors import InputError
from trainwell.models import MLP, NAMES, ResNet, create, default_name
from trainwell.regularize import DropConnect, Dropout, StochasticDepth

NETS = """
import torch
from torch import nn

def narrow(num_classes, in_chans=9, img_size=77):
    net = nn.Linear(1, 1)
    net.seen = dict(num_classes=num_classes, in_chans=in_chans, img_size=img_size)
    return net

def deep(num_classes, **unused):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, num_classes))

def everything(**options):
    net = nn.Linear(1, 1)
    net.seen = options
    return net

class Net(nn.Module):
    def __init__(self, in_features, num_classes, *, drop_rate):
        super().__init__()
        self.seen = dict(in_features=in_features, num_classes=num_classes, drop_rate=drop_rate)

class Nets:
    @staticmethod
    def inner(num_classes):
        return nn.Linear(2, num_classes)

def needs_more(num_classes, depth): return nn.Linear(1, 1)
def broken(): raise RuntimeError("no\\n  weights")
def returns_text(): return "net"
ready = nn.Linear(1, 1)
number = 3
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(NETS)
    (tmp_path / f"{name}_bad.py").write_text("import torch\nraise OSError('disk')\n")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("name", NAMES)
def test_every_name_makes_a_model_of_the_datas_shape(name: str) -> None:
    net = create(name, num_classes=5, in_chans=1, img_size=32, drop_rate=0.1).eval()
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    assert 0.1 in [module.p for module in net.modules() if isinstance(module, Dropout)]


def test_stochastic_depth_rises_with_the_blocks() -> None:
    net = create("resnet20", num_classes=5, in_chans=1, drop_path_rate=0.4)
    rates = [module.p for module in net.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.4 * k / 8 for k in range(9)])
    with pytest.raises(InputError, match=r"^drop_path_rate: the model has no residual branch.*leave it at 0$"):
        create("mlp", num_classes=3, in_features=13, drop_path_rate=0.1)


def test_mlp_for_feature_vectors() -> None:
    net = create("mlp", num_classes=3, in_features=13)
    assert isinstance(net, MLP)
    assert net(torch.zeros(2, 13)).shape == (2, 3)


def test_a_compiled_module_comes_back_where_no_noise_is_asked_for() -> None:
    net = torch.compile(nn.Sequential(nn.Linear(4, 2)), backend="eager")
    assert create(net, num_classes=2) is net
    with pytest.raises(InputError, match=r"before torch\.compile; or leave it at 0"):
        create(net, num_classes=2, drop_rate=0.1)


def test_a_module_comes_back_as_it_is() -> None:
    net = nn.Linear(2, 3)
    assert create(net, num_classes=9) is net


@pytest.mark.parametrize("size", [None, 8, 28, 32, 64, 96, 224])
def test_the_default_name_makes_a_model_that_runs_on_the_data(size: int | None) -> None:
    if size is None:
        net = create(default_name(size), num_classes=2, in_features=6)
        assert net.eval()(torch.zeros(1, 6)).shape == (1, 2)
    else:
        net = create(default_name(size), num_classes=2, in_chans=3, img_size=size)
        assert isinstance(net, ResNet)
        assert net.eval()(torch.zeros(1, 3, size, size)).shape == (1, 2)


def test_a_function_gets_what_it_takes_and_keeps_its_defaults_for_what_is_unknown(nets: str) -> None:
    assert create(f"{nets}:narrow", num_classes=4, in_chans=1, img_size=8).seen == {
        "num_classes": 4,
        "in_chans": 1,
        "img_size": 8,
    }
    assert create(f"{nets}:narrow", num_classes=4).seen == {"num_classes": 4, "in_chans": 9, "img_size": 77}
    assert create(f"{nets}:everything", num_classes=4, in_chans=3, img_size=8).seen == {
        "num_classes": 4,
        "in_chans": 3,
        "img_size": 8,
        "in_features": 192,
    }
    assert create(f"{nets}:Net", num_classes=4, in_features=7, drop_rate=0.2).seen == {
        "in_features": 7,
        "num_classes": 4,
        "drop_rate": 0.2,
    }
    assert create(f"{nets}:Nets.inner", num_classes=4).out_features == 4


def test_functions_are_found_in_the_working_directory_without_leaving_it_on_the_path(nets: str, tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.remove(''); from trainwell.models import create; before = list(sys.path);"
        f"create('{nets}:narrow', num_classes=2); assert sys.path == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_code_is_refused_and_not_even_imported(nets: str) -> None:
    with pytest.raises(InputError, match="pass model="):
        create(f"{nets}:narrow", num_classes=2, allow_code=False)
    assert nets not in sys.modules
    assert isinstance(create("resnet8", num_classes=2, in_chans=3, allow_code=False), ResNet)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt20", r"unknown model 'resnt20' \(did you mean 'resnet20'\?\): it is one of mlp, resnet8, .*resnet50"),
        ("torch.nn.Linear", "'package.module:function'"),
        ("no_such_package:net", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("{nets}_bad:net", "cannot be imported: OSError: disk"),
        ("{nets}:absent", "cannot be imported: AttributeError"),
        ("{nets}:", "cannot be imported"),
        (":net", "cannot be imported"),
        ("{nets}:number", "of type int"),
        ("{nets}:ready", "of type Linear: pass it as model="),
        ("{nets}:needs_more", "needs 'depth'"),
        ("{nets}:Net", "needs 'in_features'"),
        ("{nets}:broken", "failed: RuntimeError: no weights"),
        ("{nets}:returns_text", "must return a torch.nn.Module, not a str"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(nets: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        create(name.format(nets=nets), num_classes=2)
    assert "\n" not in str(caught.value)
    assert name.format(nets=nets) in str(caught.value)


def test_noise_that_a_function_does_not_take_is_put_into_what_it_makes(nets: str) -> None:
    net = create(f"{nets}:deep", num_classes=2, drop_rate=0.1)
    assert [module.p for module in net.modules() if isinstance(module, Dropout)] == [0.1]
    with pytest.raises(InputError, match="^drop_rate: the model has no linear layer within it.*; or leave it at 0$"):
        create(f"{nets}:narrow", num_classes=2, drop_rate=0.1)


def test_noise_is_put_into_a_module_too() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert create(net, num_classes=2, dropconnect=0.3) is net
    assert isinstance(net[2], DropConnect)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet8", "in_features": 5}, "take 'mlp'"),
        ({"model": "mlp"}, "give in_features"),
        ({"model": "mlp", "in_features": 5, "num_classes": 0}, "num_classes is 0"),
        ({"model": "resnet8", "in_chans": 0}, "in_chans is 0"),
        ({"model": "resnet8", "in_chans": 3, "drop_rate": 1.0}, "drop_rate is 1.0"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create(**{"num_classes": 2, **options})
