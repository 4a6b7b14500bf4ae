"""Oracles: the tables of the paper, torchvision's published counts, and a forward pass written from the key names."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from trainwell import models
from trainwell.models.resnet import BasicBlock, Bottleneck, ResNet

Shapes = dict[str, tuple[int, ...]]
# He et al. 2016, table 1: kernel sizes in a block, and blocks a stage.
LARGE = {"resnet18": ((3, 3), (2, 2, 2, 2)), "resnet34": ((3, 3), (3, 4, 6, 3)), "resnet50": ((1, 3, 1), (3, 4, 6, 3))}
# The same, section 4.2: 6n + 2 layers, n blocks a stage.
SMALL = {f"resnet{6 * n + 2}": ((3, 3), (n, n, n)) for n in (1, 2, 3, 5, 7, 9)}
TABLE = {**LARGE, **SMALL}


def _norm(key: str, chans: int) -> Shapes:
    shapes: Shapes = {f"{key}.{name}": (chans,) for name in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{key}.num_batches_tracked": ()}


def _expected(name: str) -> Shapes:
    """Keys and shapes as torchvision names them, in its order, from the table alone."""
    kernels, depths = TABLE[name]
    chans, stem = (64, 7) if name in LARGE else (16, 3)
    shapes: Shapes = {"conv1.weight": (chans, 3, stem, stem), **_norm("bn1", chans)}
    widths = [chans * 2**stage for stage in range(len(depths))]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        for block in range(depth):
            before = chans
            for number, kernel in enumerate(kernels, 1):
                out = 4 * width if kernels == (1, 3, 1) and number == 3 else width
                key = f"layer{stage}.{block}"
                shapes[f"{key}.conv{number}.weight"] = (out, chans, kernel, kernel)
                shapes |= _norm(f"{key}.bn{number}", out)
                chans = out
            if chans != before:
                shapes[f"{key}.downsample.0.weight"] = (chans, before, 1, 1)
                shapes |= _norm(f"{key}.downsample.1", chans)
    classes = 1000 if name in LARGE else 10
    return {**shapes, "fc.weight": (classes, chans), "fc.bias": (classes,)}


def _forward(state: dict[str, Tensor], x: Tensor, small: bool, training: bool) -> Tensor:
    """The network as a function of its state dict, found by key names, strides from the paper."""

    def conv_norm(conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]

    x = F.relu(conv_norm("conv1", "bn1", x, stride=1 if small else 2))
    if not small:
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    for block in dict.fromkeys(
        key.rpartition(".conv")[0] for key in state if key.startswith("layer") and ".conv" in key
    ):
        stride = 2 if block.endswith(".0") and not block.startswith("layer1") else 1
        kernels = [state[f"{block}.conv{i}.weight"].shape[-1] for i in (1, 2, 3) if f"{block}.conv{i}.weight" in state]
        strided = kernels.index(3) + 1  # the first 3×3 convolution halves the image
        y = x
        for number in range(1, len(kernels) + 1):
            y = conv_norm(f"{block}.conv{number}", f"{block}.bn{number}", y, stride if number == strided else 1)
            y = F.relu(y) if number < len(kernels) else y
        if f"{block}.downsample.0.weight" in state:
            x = conv_norm(f"{block}.downsample.0", f"{block}.downsample.1", x, stride)
        x = F.relu(x + y)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def _randomized(net: ResNet) -> ResNet:
    """Gives the batch norms scales, shifts and statistics that matter."""
    generator = torch.Generator().manual_seed(1)
    for key, value in net.state_dict().items():
        if value.ndim == 1:
            low = -0.3 if key.endswith(("bias", "mean")) else 0.5
            value.copy_(torch.rand(value.shape, generator=generator) + low)
    return net


@pytest.mark.parametrize("name", TABLE)
def test_state_dict_has_torchvisions_keys_and_the_papers_shapes_in_order(name: str) -> None:
    with torch.device("meta"):
        state = getattr(models, name)().state_dict()
    assert [(key, tuple(value.shape)) for key, value in state.items()] == list(_expected(name).items())


@pytest.mark.parametrize(
    ("name", "size", "parameters", "multiply_adds"),
    [
        # torchvision's published numbers: parameters, and GFLOPS to two decimals.
        ("resnet18", 224, 11_689_512, 1.81e9),
        ("resnet34", 224, 21_797_672, 3.66e9),
        ("resnet50", 224, 25_557_032, 4.09e9),
    ],
)
def test_cost_of_the_large_networks(name: str, size: int, parameters: int, multiply_adds: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = getattr(models, name)()
        net(torch.zeros(1, 3, size, size))
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert counter.get_total_flops() / 2 == pytest.approx(multiply_adds, abs=0.005e9)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 9])
def test_cost_of_the_small_networks(n: int) -> None:
    # Counted by hand: 2n convolutions 9w² in a stage of width w, the first one of stages 2 and 3 with half the inputs
    # (9w²/2), and there a shortcut of w²/2; each output channel of a convolution has two numbers of batch norm.
    weights = {w: 2 * n * 9 * w * w for w in (16, 32, 64)}
    for w in (32, 64):
        weights[w] += w * w // 2 - 9 * w * w // 2
    norms = 2 * (16 + 2 * n * (16 + 32 + 64) + 32 + 64)
    stem, last = 27 * 16, 64 * 10
    pixels = {16: 32 * 32, 32: 16 * 16, 64: 8 * 8}
    multiply_adds = stem * pixels[16] + sum(weights[w] * pixels[w] for w in pixels) + last

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = getattr(models, f"resnet{6 * n + 2}")()
        net(torch.zeros(1, 3, 32, 32))
    assert sum(p.numel() for p in net.parameters()) == stem + sum(weights.values()) + norms + last + 10
    assert counter.get_total_flops() == 2 * multiply_adds


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85)]
)
def test_the_small_networks_are_as_large_as_the_paper_says(name: str, millions: float) -> None:
    net = getattr(models, name)()
    shortcuts = sum(p.numel() for key, p in net.named_parameters() if "downsample" in key)  # the paper's have none
    count = sum(p.numel() for p in net.parameters()) - shortcuts
    assert count / 1e6 == pytest.approx(millions, abs=0.005)
    if name == "resnet20":
        assert (count, shortcuts) == (269_722, 2_752)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 64), ("resnet34", 64), ("resnet50", 64), ("resnet8", 8), ("resnet20", 15)]
)
def test_forward_equals_the_function_of_the_state_dict(name: str, size: int, training: bool) -> None:
    torch.manual_seed(0)
    net = _randomized(getattr(models, name)(num_classes=7)).double().train(training)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    logits = net(images)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, _forward(state, images, name in SMALL, training), rtol=1e-10, atol=1e-10)


def test_gradients_equal_those_of_the_function_of_the_state_dict() -> None:
    torch.manual_seed(0)
    net = _randomized(models.resnet8()).double()
    state = {key: value.detach().clone() for key, value in net.state_dict().items()}
    leaves = {key: state[key].requires_grad_() for key, _ in net.named_parameters()}
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    net(images).square().sum().backward()
    _forward(state, images, small=True, training=True).square().sum().backward()
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, leaves[key].grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet8"])
def test_any_cut_of_the_children_is_a_model(name: str) -> None:
    net = _randomized(getattr(models, name)(width=8)).eval()
    images = torch.randn(2, 3, 32, 32)
    children = list(net.children())
    whole = net(images)
    for cut in range(1, len(children)):
        parts = nn.Sequential(*children[:cut]), nn.Sequential(*children[cut:])
        assert torch.equal(parts[1](parts[0](images)), whole)
    stages = [name for name, _ in net.named_children() if name.startswith("layer")]
    assert stages == [f"layer{number}" for number in range(1, 4 if name == "resnet8" else 5)]


def test_convolutions_start_with_variance_two_over_fan_out() -> None:
    torch.manual_seed(0)
    for name, module in models.resnet18().named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.var().item() * fan_out == pytest.approx(2.0, rel=0.1), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_with_zero_init_residual_blocks_start_as_their_shortcuts(name: str) -> None:
    net = getattr(models, name)(zero_init_residual=True).eval()
    blocks = [module for module in net.modules() if isinstance(module, BasicBlock | Bottleneck)]
    x = torch.randn(1, blocks[1].conv1.in_channels, 4, 4).relu()
    assert torch.equal(blocks[1](x), x)
    assert not torch.equal(getattr(models, name)().eval().layer1[1](x), x)


def test_channels_classes_width_and_dropout_are_settable() -> None:
    net = models.resnet8(in_chans=1, num_classes=4, width=8, drop_rate=0.5)
    images = torch.randn(6, 1, 8, 8)
    assert net.conv1.weight.shape == (8, 1, 3, 3)
    assert net.eval()(images).shape == (6, 4)
    assert torch.equal(net(images), net(images))
    features = torch.ones(1, 1000)
    net.train()
    dropped = net.drop(features)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < (dropped == 0).float().mean() < 0.6


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20"])
def test_channels_last_stays_so_throughout_and_changes_nothing(name: str) -> None:
    net = _randomized(getattr(models, name)(width=8)).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = net(images)
    formats: list[bool] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d):
            module.register_forward_hook(
                lambda _m, _i, y: formats.append(y.is_contiguous(memory_format=torch.channels_last))
            )
    logits = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    assert all(formats)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20"])
def test_trains_under_bf16_autocast_in_channels_last(name: str) -> None:
    torch.manual_seed(0)
    net = getattr(models, name)(width=16, num_classes=10).to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(images)
            loss = F.cross_entropy(logits, labels)
        assert logits.dtype == torch.bfloat16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in net.parameters())
    assert losses[-1] < losses[0] / 2
