"""The lab: what measures, diagnoses and shows runs."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.lab.report import write_report

__all__ = ["write_report"]

__getattr__ = attributes(__name__, {"write_report": "report"})
