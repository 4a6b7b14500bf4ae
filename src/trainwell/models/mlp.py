"""The multilayer perceptron, for feature vectors."""

from collections.abc import Sequence

from torch import Tensor, nn

from trainwell.regularize import Dropout


class MLP(nn.Module):
    """Hidden layers, each linear, batch norm, ReLU and dropout, and a last linear layer.

    Takes `(n, ...)` with `in_features` numbers a sample, flattens it, and returns `(n, num_classes)`. Batch norm cannot
    train on a batch of one sample.

    Args:
        in_features: numbers a sample.
        num_classes: length of the output; 1 for plain regression.
        hidden: length of each hidden layer; `()` makes it linear.
        batch_norm: normalise each hidden layer over the batch, before the ReLU.
        drop_rate: fraction of each hidden layer's units that is dropped, in training.

    >>> import torch
    >>> MLP(12, 3)(torch.zeros(5, 3, 2, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden: Sequence[int] = (256, 256),
        *,
        batch_norm: bool = True,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.layers = nn.Sequential()
        for size in hidden:
            layer = nn.Sequential(nn.Linear(in_features, size, bias=not batch_norm))  # batch norm has its own bias
            if batch_norm:
                layer.append(nn.BatchNorm1d(size))
            self.layers.append(layer.append(nn.ReLU(inplace=True)).append(Dropout(drop_rate)))
            in_features = size
        self.fc = nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs `(n, num_classes)` for samples `(n, ...)`."""
        outputs: Tensor = self.fc(self.layers(self.flatten(x)))
        return outputs
