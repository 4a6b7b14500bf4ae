"""The lab: what measures and shows runs."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.lab.hessian import Sharpness, sharpness
    from trainwell.lab.report import write_report

__all__ = ["Sharpness", "sharpness", "write_report"]

__getattr__ = attributes(__name__, {**dict.fromkeys(["Sharpness", "sharpness"], "hessian"), "write_report": "report"})
