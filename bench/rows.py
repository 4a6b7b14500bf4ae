"""The raw rows of a benchmark, as a CSV file."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def append(path: Path, row: dict[str, Any], columns: Sequence[str] | None = None) -> None:
    """Adds a row; the first makes the file. Where rows have not all the same columns, these are all of them."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns or row, lineterminator="\n", restval="")
        if new:
            writer.writeheader()
        writer.writerow(row)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
