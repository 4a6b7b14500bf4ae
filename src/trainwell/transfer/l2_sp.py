"""L2-SP: a pull toward the pretrained weights, the starting point of fine-tuning."""

from typing import Any

import torch
from torch import Tensor, nn

from trainwell.errors import InputError, nearest
from trainwell.weights import bare, is_within


class L2SP:
    r"""Half the squared distance of the weights to where they started, as a penalty.

    $$\Omega(w) = \frac{\alpha}{2} \lVert w - w^0 \rVert^2$$

    over the pretrained parameters; for the new head there is ordinary decay (X. Li, Y. Grandvalet and F. Davoine,
    *Explicit inductive bias for transfer learning with convolutional networks*, 2018, equation 3, in which $w^0$ is the
    pretrained network). Use either `penalty`, added to the loss, or `add_gradient`, which costs less; and no weight
    decay on these parameters besides, which would pull toward zero.

    Args:
        model: with the weights that it starts from; frozen ones count for nothing.
        alpha: strength, above 0; 0.01 to 0.1 are usual.
        head: the name of the new layer in the model itself, whatever wraps it; it is not pulled. By default all are.

    Raises:
        InputError: `alpha` is out of range, or there is no layer of the head's name.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> pull = L2SP(model, alpha=0.5)
    >>> with torch.no_grad():
    ...     _ = model.weight.add_(2.0)
    >>> round(pull.penalty().item(), 3)  # 0.5 / 2 · (2² + 2²)
    2.0
    """

    def __init__(self, model: nn.Module, alpha: float, *, head: str | None = None) -> None:
        if not 0 < alpha < float("inf"):
            raise InputError(f"alpha is {alpha}: it must be above 0")
        self.alpha, model = alpha, bare(model)
        known = [*dict(model.named_modules()), *dict(model.named_parameters())]
        if head is not None and head not in known:
            raise InputError(f"the model has no layer {head!r} to be left out as its head{nearest(head, known)}")
        self._pairs = [
            (name, parameter, parameter.detach().clone())
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not is_within(name, head)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Returns the weights that are pulled to, by name; `load_state_dict` sets them again."""
        return {"start": {name: start for name, _, start in self._pairs}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Pulls to the weights of a saved state.

        Raises:
            InputError: it is of another model.
        """
        saved = state["start"]
        if {name: value.shape for name, value in saved.items()} != {name: s.shape for name, _, s in self._pairs}:
            raise InputError("the weights to pull to are of another model")
        for name, _, start in self._pairs:
            start.copy_(saved[name])

    def penalty(self) -> Tensor:
        """Returns the penalty, to be added to the loss."""
        terms = [(parameter - start).square().sum() for _, parameter, start in self._pairs if parameter.requires_grad]
        return self.alpha / 2 * (torch.stack(terms).sum() if terms else torch.zeros(()))

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Adds the penalty's gradient to the gradients; call it between `backward` and the step."""
        for _, parameter, start in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self.alpha)
