"""Torch's own table of optimizers: their configurations, and what they refuse."""

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import optim_db

# Importing torch's test utilities forbids to set `torch.backends` flags from then on; `fit` sets some.
setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)

__all__ = ["optim_db"]
