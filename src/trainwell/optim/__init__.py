"""How a step is taken: schedules of hyper-parameters, and which parameters decay."""

from trainwell.optim import schedules
from trainwell.optim.groups import no_decay_groups

__all__ = ["no_decay_groups", "schedules"]
