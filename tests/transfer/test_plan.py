"""The plan, in the four cases and between them."""

import numpy as np
import pytest

from trainwell.errors import InputError
from trainwell.transfer import make_plan
from trainwell.transfer.probes import Probe


def _probe(stage, right, of=400, log_loss=1.0):
    """A probe that is right on the first samples."""
    return Probe(stage, 8, right / of, (0.0, 1.0), log_loss, (), (), np.arange(of) < right)


LIKE = [_probe("layer1", 150), _probe("layer2", 250), _probe("layer3", 330, log_loss=0.5)]
UNLIKE = [_probe("layer1", 250), _probe("layer2", 330, log_loss=0.5), _probe("layer3", 200)]


@pytest.mark.parametrize(("probes", "samples", "first", "second"), [
    (LIKE, 40, "all", "linear"), (LIKE, 4_000, "all", "linear"),
    (UNLIKE, 40, "all", "all at the full rate"), (UNLIKE, 4_000, "all at the full rate", "all"),
])  # fmt: skip
def test_the_four_cases_of_the_lecture(probes, samples, first, second):
    plan = make_plan(probes, samples=samples, num_classes=4)
    assert [one.name for one in plan.candidates[:2]] == [first, second]
    assert plan.candidates[-1].name == ("linear on layer2" if probes is UNLIKE else "linear")
    told = " ".join(plan.reasons)
    assert ("unlike those of" in told) == (probes is UNLIKE)
    assert ("much" in plan.reasons[0]) == (samples == 4_000)
    stages = {one.name: one.stage for one in plan.candidates}
    assert stages.get("linear on layer2", "layer2") == "layer2"
    assert stages.get("linear", "layer3") == "layer3"


def test_a_difference_that_may_be_chance_makes_no_data_unlike():
    probes = [_probe("layer1", 31, of=40), _probe("layer2", 30, of=40)]
    assert "are like those" in " ".join(make_plan(probes, samples=40, num_classes=4).reasons)


def test_fine_tuning_more_at_the_full_rate_where_data_are_unlike_and_many():
    freely = make_plan(UNLIKE, samples=4_000, num_classes=4).candidates[0]
    assert freely.changes == {"transfer": "all", "backbone_lr": 1.0}


def test_mixup_from_20_000_images_on():
    assert all("mixup" not in one.changes for one in make_plan(LIKE, samples=19_999, num_classes=4).candidates)
    fine = [one for one in make_plan(LIKE, samples=20_000, num_classes=4).candidates if one.stage is None]
    assert fine
    assert all(one.changes["mixup"] == 0.1 for one in fine)


@pytest.mark.parametrize(("probes", "samples", "given", "told"), [
    (LIKE, 40, {}, "all of it, below the head at 0.1 of the head's rate; a linear classifier on layer3"),
    (LIKE, 4_000, {"backbone_lr": 0.3, "mixup": 0.2},
     "all of it, below the head at 0.3 of the head's rate, with mixup 0.2; a linear classifier on layer3"),
    (UNLIKE, 40, {}, "all of it, below the head at 0.1 of the head's rate; all of it, at the full rate; "
     "a linear classifier on layer2"),
    (UNLIKE, 40_000, {}, "all of it, at the full rate, with mixup 0.1; all of it, below the head at 0.1 of the head's "
     "rate, with mixup 0.1; a linear classifier on layer2"),
])  # fmt: skip
def test_the_plan_says_what_each_way_trains_at_which_rate_in_the_order_of_its_candidates(probes, samples, given, told):
    plan = make_plan(probes, samples=samples, num_classes=4, **given)
    assert plan.reasons[-1] == f"what may suit, the likeliest first: {told}"
    assert plan.candidates == make_plan(probes, samples=samples, num_classes=4).candidates


def test_without_probes_there_is_no_plan():
    with pytest.raises(InputError, match="no probes"):
        make_plan([], samples=10, num_classes=2)


def test_where_the_bare_pixels_tell_more_the_data_are_unlike():
    pixels = _probe("pixels", 380)
    plan = make_plan(LIKE, samples=40, num_classes=4, pixels=pixels)
    assert "a linear classifier on pixels is right on 95.0%, on the last stage on 82.5%" in " ".join(plan.reasons)
    assert [one.name for one in plan.candidates] == ["all", "all at the full rate", "linear"]
    assert make_plan(LIKE, samples=40, num_classes=4, pixels=_probe("pixels", 200)) == make_plan(
        LIKE, samples=40, num_classes=4
    )
