"""Averages at test: over noise, crops and members, always of probabilities."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.ensemble.marginal import Marginal, marginalize

__all__ = ["Marginal", "marginalize"]

__getattr__ = attributes(__name__, dict.fromkeys(["Marginal", "marginalize"], "marginal"))
