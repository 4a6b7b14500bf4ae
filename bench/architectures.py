"""Models of the evidence task that are no recipe's: `model=bench.architectures:NAME`, from the repository's folder."""

import torch
from torch import Tensor, nn

from trainwell.models import resnet8
from trainwell.models.resnet import BasicBlock, ResNet
from trainwell.regularize import FractionalMaxPool2d


def fractional(num_classes: int, in_chans: int) -> ResNet:
    """resnet8 with two fractional max pools, of 0.71 each, before stages 2 and 3 in place of their strides."""
    model = resnet8(num_classes=num_classes, in_chans=in_chans)
    for stage in (model.layer2, model.layer3):
        block = stage[0]
        assert isinstance(block, BasicBlock)
        block.conv1.stride = block.downsample[0].stride = (1, 1)
        stage.insert(0, FractionalMaxPool2d(2**-0.5))
        stage.insert(0, FractionalMaxPool2d(2**-0.5))
    return model


def without_batch_norm(num_classes: int, in_chans: int) -> ResNet:
    """resnet8 with the scale and shift of each channel that batch norm learns, and without its normalising."""
    model = resnet8(num_classes=num_classes, in_chans=in_chans)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _Affine(child.num_features))
    return model


class _Affine(nn.Module):
    def __init__(self, chans: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(chans)), nn.Parameter(torch.zeros(chans))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
