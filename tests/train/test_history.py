import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.errors import InputError
from trainwell.train import History


@given(
    rows=st.lists(
        st.fixed_dictionaries({"epoch": st.integers(), "loss": st.floats(allow_nan=False, allow_infinity=False)})
    )
)
def test_rows_come_back_to_the_bit(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("history") / "history.jsonl"
    history = History(path)
    for row in rows:
        history.append(row)
    assert History(path).rows == rows
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows if rows else not path.exists()


def test_what_is_not_finite_is_null(tmp_path):
    History(tmp_path / "h").append({"a": math.nan, "b": math.inf, "c": 1.5})
    assert History(tmp_path / "h").rows == [{"a": None, "b": None, "c": 1.5}]


def test_replaced_rows_are_replaced_on_disk_too(tmp_path):
    history = History(tmp_path / "h")
    for epoch in range(5):
        history.append({"epoch": epoch})
    history.replace(history.rows[:2])
    history.append({"epoch": 7})
    assert History(tmp_path / "h").rows == [{"epoch": 0}, {"epoch": 1}, {"epoch": 7}]


def test_a_line_cut_short_by_a_kill_is_left_out_and_other_damage_is_told(tmp_path):
    path = tmp_path / "h"
    path.write_text('{"epoch": 1}\n{"epo')
    assert History(path).rows == [{"epoch": 1}]
    path.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(InputError, match="line 2"):
        History(path)
