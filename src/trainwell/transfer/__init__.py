"""With little data: pretrained weights, which parts of them to train and how, and what they know of the data."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.freezing import freeze, is_frozen, thaw
    from trainwell.transfer.backbones import Backbone, load_backbone
    from trainwell.transfer.cut import Cut
    from trainwell.transfer.features import extract_features, stage_features
    from trainwell.transfer.l2_sp import L2SP
    from trainwell.transfer.linear import best_l2, fit_linear
    from trainwell.transfer.plan import Plan, make_plan
    from trainwell.transfer.probes import Probe, probe
    from trainwell.transfer.saved import save_backbone
    from trainwell.transfer.state import Match, load_into, read_weights
    from trainwell.transfer.surgery import find_head, freeze_all_but, head_inputs, reinitialize, replace_head, stages

__all__ = [
    "L2SP",
    "Backbone",
    "Cut",
    "Match",
    "Plan",
    "Probe",
    "best_l2",
    "extract_features",
    "find_head",
    "fit_linear",
    "freeze",
    "freeze_all_but",
    "head_inputs",
    "is_frozen",
    "load_backbone",
    "load_into",
    "make_plan",
    "probe",
    "read_weights",
    "reinitialize",
    "replace_head",
    "save_backbone",
    "stage_features",
    "stages",
    "thaw",
]

__getattr__ = attributes(
    __name__,
    {
        **dict.fromkeys(["Backbone", "load_backbone"], "backbones"),
        "L2SP": "l2_sp",
        "Cut": "cut",
        **dict.fromkeys(["extract_features", "stage_features"], "features"),
        **dict.fromkeys(["Plan", "make_plan"], "plan"),
        **dict.fromkeys(["freeze", "is_frozen", "thaw"], ".freezing"),
        **dict.fromkeys(["Probe", "probe"], "probes"),
        **dict.fromkeys(["best_l2", "fit_linear"], "linear"),
        "save_backbone": "saved",
        **dict.fromkeys(["Match", "load_into", "read_weights"], "state"),
        **dict.fromkeys(
            ["find_head", "freeze_all_but", "head_inputs", "reinitialize", "replace_head", "stages"], "surgery"
        ),
    },
)
