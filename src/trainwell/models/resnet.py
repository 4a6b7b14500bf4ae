"""Residual networks for large and for small images.

Both families are those of He, Zhang, Ren and Sun, *Deep residual learning for image recognition* (CVPR 2016): the
table of its section 4.1 for large images, with torchvision's parameter names and its place of the stride (on the
3×3 convolution of a bottleneck), and section 4.2 for small ones, with 1×1 convolutions where shapes change.
"""

from collections.abc import Sequence
from typing import TypedDict, Unpack

from torch import Tensor, nn

from trainwell.regularize import Dropout, StochasticDepth, depth_rates


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and the shortcut around them."""

    expansion = 1

    def __init__(self, in_chans: int, width: int, stride: int = 1, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.drop_path = StochasticDepth(drop_path_rate)
        self.downsample = _shortcut(in_chans, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `relu(residual(x) + shortcut(x))`."""
        residual: Tensor = self.relu(self.bn1(self.conv1(x)))
        residual = self.drop_path(self.bn2(self.conv2(residual)))
        residual += self.downsample(x)
        output: Tensor = self.relu(residual)
        return output


class Bottleneck(nn.Module):
    """A 1×1 convolution to `width` channels, a 3×3, a 1×1 to four times as many, and the shortcut around them."""

    expansion = 4

    def __init__(self, in_chans: int, width: int, stride: int = 1, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = StochasticDepth(drop_path_rate)
        self.downsample = _shortcut(in_chans, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `relu(residual(x) + shortcut(x))`."""
        residual: Tensor = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.drop_path(self.bn3(self.conv3(residual)))
        residual += self.downsample(x)
        output: Tensor = self.relu(residual)
        return output


def _shortcut(in_chans: int, out_chans: int, stride: int) -> nn.Module:
    if stride == 1 and in_chans == out_chans:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_chans, out_chans, 1, stride, bias=False), nn.BatchNorm2d(out_chans))


class ResNet(nn.Module):
    """A stem, stages of residual blocks (`layer1`, `layer2`, …), the mean over the image, and a linear layer.

    Takes images `(n, in_chans, height, width)` of any size and returns logits `(n, num_classes)`. The children stand
    in the order in which they are used: `nn.Sequential(*net.children())` computes the same, and so does any cut of it.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: how many blocks each stage has; each stage but the first halves the image.
        in_chans: channels of the images.
        num_classes: length of the output.
        width: channels of the first stage's 3×3 convolutions; each further stage has twice as many.
        small: the stem: for small images a 3×3 convolution that keeps their size, for large ones a 7×7
            convolution and a max pool, each of stride 2.
        drop_rate: fraction of the features that is dropped before the last layer, in training.
        drop_path_rate: fraction of the images that skip the last block, in training; it falls to 0 at the first.
        zero_init_residual: start the last scale of each residual at zero, so that every block starts as its shortcut.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        width: int = 64,
        small: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(in_chans, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self._stages = [f"layer{number}" for number in range(1, len(depths) + 1)]
        chans, rates = width, iter(depth_rates(drop_path_rate, sum(depths)))
        for number, (name, depth) in enumerate(zip(self._stages, depths, strict=True)):
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if number > 0 and index == 0 else 1
                blocks.append(block(chans, width * 2**number, stride, next(rates)))
                chans = width * 2**number * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.drop = Dropout(drop_rate)
        self.fc = nn.Linear(chans, num_classes)
        self._initialize(zero_init_residual)

    def _initialize(self, zero_init_residual: bool) -> None:
        """Draws the convolutions as torchvision does; batch norms start as 1 and 0, and `fc` as torch has it."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif zero_init_residual and isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits `(n, num_classes)` of the images `(n, in_chans, height, width)`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self._stages:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(self.drop(self.flatten(self.avgpool(x))))
        return logits


class Options(TypedDict, total=False):
    """What each of the functions below takes, by keyword; the meanings are those of `ResNet`.

    These are `in_chans` (3), `num_classes` (1000 for large images, 10 for small ones), `width` (64 and 16),
    `drop_rate`, `drop_path_rate` (0) and `zero_init_residual` (False).
    """

    in_chans: int
    num_classes: int
    width: int
    drop_rate: float
    drop_path_rate: float
    zero_init_residual: bool


def resnet18(**options: Unpack[Options]) -> ResNet:
    """ResNet-18 for large images: 11.7 million parameters at 1000 classes, 1.8 billion multiply-adds at 224 pixels."""
    return ResNet(BasicBlock, (2, 2, 2, 2), **options)


def resnet34(**options: Unpack[Options]) -> ResNet:
    """ResNet-34 for large images: 21.8 million parameters at 1000 classes, 3.7 billion multiply-adds at 224 pixels."""
    return ResNet(BasicBlock, (3, 4, 6, 3), **options)


def resnet50(**options: Unpack[Options]) -> ResNet:
    """ResNet-50 for large images: 25.6 million parameters at 1000 classes, 4.1 billion multiply-adds at 224 pixels."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **options)


def _for_small_images(blocks: int, options: Options) -> ResNet:
    # Depth counts the layers with weights: the first convolution, two a block in three stages, the last layer.
    small: Options = {"num_classes": 10, "width": 16, **options}
    return ResNet(BasicBlock, (blocks, blocks, blocks), small=True, **small)


def resnet8(**options: Unpack[Options]) -> ResNet:
    """ResNet-8 for small images: 78 thousand parameters at 10 classes, 12 million multiply-adds at 32 pixels.

    >>> import torch
    >>> resnet8(in_chans=1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    return _for_small_images(1, options)


def resnet14(**options: Unpack[Options]) -> ResNet:
    """ResNet-14 for small images: 0.18 million parameters at 10 classes, 27 million multiply-adds at 32 pixels."""
    return _for_small_images(2, options)


def resnet20(**options: Unpack[Options]) -> ResNet:
    """ResNet-20 for small images: 0.27 million parameters at 10 classes, 41 million multiply-adds at 32 pixels."""
    return _for_small_images(3, options)


def resnet32(**options: Unpack[Options]) -> ResNet:
    """ResNet-32 for small images: 0.47 million parameters at 10 classes, 69 million multiply-adds at 32 pixels."""
    return _for_small_images(5, options)


def resnet44(**options: Unpack[Options]) -> ResNet:
    """ResNet-44 for small images: 0.66 million parameters at 10 classes, 98 million multiply-adds at 32 pixels."""
    return _for_small_images(7, options)


def resnet56(**options: Unpack[Options]) -> ResNet:
    """ResNet-56 for small images: 0.86 million parameters at 10 classes, 126 million multiply-adds at 32 pixels."""
    return _for_small_images(9, options)
