"""Torch's own table of optimizers: their configurations, and what they refuse."""

import warnings
from unittest import mock

# Torch's test utilities forbid to set `torch.backends` flags once they are imported; `fit` sets some.
with mock.patch("torch.backends.disable_global_flags"), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import optim_db

__all__ = ["optim_db"]
