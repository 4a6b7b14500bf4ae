import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.errors import InputError
from trainwell.train import EarlyStopping


def _run(values, **options):
    """Returns where a planted history stops (or its end), and the best value and its place."""
    stopping = EarlyStopping(**{"mode": "max", **options})
    for at, value in enumerate(values):
        stopping.update(value, at)
        if stopping.should_stop(at):
            break
    return at, stopping.best, stopping.best_at


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([1, 2, 3, 4], {"patience": 1}, (3, 4, 3)),
        ([3, 2, 1, 9], {"patience": 2}, (2, 3, 0)),
        ([3, 2, 9, 1, 1], {"patience": 2}, (4, 9, 2)),
        ([3, 3, 3], {"patience": 2}, (2, 3, 0)),  # a tie is no gain
        ([3, 2.95, 2.875, 2.5], {"patience": 2, "mode": "min", "min_delta": 0.125}, (2, 3, 0)),
        ([3, 2.9, 2.8, 2.5], {"patience": 3, "mode": "min", "min_delta": 0.125}, (3, 2.5, 3)),  # slow gains add up
        ([1, math.nan, math.nan, 5], {"patience": 2}, (2, 1, 0)),
        ([math.nan, 1], {"patience": 5}, (1, 1, 1)),
        ([5, 1, 1, 1, 1], {}, (4, 5, 0)),
    ],
)
def test_planted_histories(values, options, expected):
    assert _run(values, **options) == expected


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(1, 5), st.sampled_from(["min", "max"]))
def test_the_best_is_the_best_and_it_stops_just_after_patience(values, patience, mode):
    at, best, best_at = _run(values, patience=patience, mode=mode)
    assert best == (max if mode == "max" else min)(values[: at + 1])
    assert values.index(best) == best_at
    assert at - best_at == patience or at == len(values) - 1


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.integers(0, 19))
def test_it_goes_on_from_a_saved_state(values, cut):
    whole, first, second = (EarlyStopping(patience=3) for _ in range(3))
    told = [whole.update(value, at) for at, value in enumerate(values)]
    for at, value in enumerate(values):
        if at == cut:
            second.load_state_dict(first.state_dict())
        assert (second if at >= cut else first).update(value, at) == told[at]


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"min_delta": -1}, {"mode": "up"}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        EarlyStopping(**wrong)
