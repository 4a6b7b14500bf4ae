"""The checks before a long run: is the first loss what chance gives, and can one batch be learnt by heart?"""

import dataclasses
import math

import torch

from trainwell import random
from trainwell.errors import DivergedError
from trainwell.train.loop import Trainer
from trainwell.train.speed import copied
from trainwell.transfer.surgery import find_head

_LOOKED_AT = 10_000  # steps of a schedule that says the rates itself


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What a dry run found.

    Attributes:
        first_loss: of the untrained model on the first batch.
        chance_loss: ln(classes), what guessing costs; `None` unless classes are told apart.
        last_loss: on the same batch, after `steps` steps on it alone.
        steps: how many steps that took.
    """

    first_loss: float
    chance_loss: float | None
    last_loss: float
    steps: int

    @property
    def starts_at_chance(self) -> bool:
        """Whether the first loss is within half of ln(classes)."""
        return self.chance_loss is None or abs(self.first_loss - self.chance_loss) <= 0.5 * self.chance_loss

    @property
    def learns(self) -> bool:
        """Whether the loss on the one batch fell to a tenth."""
        return self.last_loss <= 0.1 * self.first_loss


def learn_one_batch(trainer: Trainer, classes: int, most_steps: int = 300) -> DryRun:
    """Learns one batch by heart with a copy of the model, at the recipe's rate throughout.

    A first loss far from ln(classes) tells of a bad initialisation or scale; a batch that cannot be learnt tells of
    targets that do not belong to their inputs, a rate far off, or a model that cannot fit.
    """
    rate = trainer.recipe.lr or max(map(trainer.schedule, range(min(trainer.total_steps, _LOOKED_AT))))
    probe = copied(trainer, schedule="constant", warmup=0.0, lr=rate)
    probe.objective = probe.reported
    if trainer.recipe.transfer in ("linear", "lp_ft"):  # whose head may be the best there is already
        with torch.no_grad():
            for parameter in probe.model.get_submodule(find_head(probe.model)).parameters():
                parameter.zero_()
    losses: list[float] = []
    with random.preserved():
        while len(losses) < most_steps and not (losses and losses[-1] <= 0.1 * losses[0]):
            probe.batch, probe.tally = 0, [0.0, 0.0, 0.0]
            try:
                probe.train_step()
            except DivergedError:
                losses.append(math.inf)
                break
            losses.append(probe.tally[1] / probe.tally[0])
    chance = math.log(classes) if trainer.classification else None
    return DryRun(losses[0], chance, losses[-1], len(losses))
