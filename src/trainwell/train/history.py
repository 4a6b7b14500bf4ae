"""The history of a run: one JSON object a line, one line an epoch."""

import json
from pathlib import Path
from typing import Any

from trainwell.errors import InputError
from trainwell.files import finite, naming, write_atomically

Row = dict[str, Any]


class History:
    """Rows that are also on disk, in a file that any tool reads.

    Numbers that are not finite are written as `null`, because JSON has no word for them.

    Args:
        path: the file; `None` keeps the rows in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rows: list[Row] = read(path) if path is not None and path.exists() else []

    def append(self, row: Row) -> None:
        """Adds a row, in memory and at the end of the file."""
        row = finite(row)
        self.rows.append(row)
        if self.path is not None:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def replace(self, rows: list[Row]) -> None:
        """Puts other rows in place of all, as when a run goes back to a checkpoint."""
        self.rows = list(rows)
        if self.path is not None:
            write_atomically(self.path, "".join(map(_line, self.rows)))


def read(path: Path) -> list[Row]:
    """Reads a history; a last line that a kill cut short is left out.

    Raises:
        InputError: any other line is not JSON.
    """
    lines = path.read_bytes().split(b"\n")
    rows: list[Row] = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is not whole
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise InputError(
                f"{path}, line {number}: not JSON; the history is damaged; remove the file: resuming the run writes it "
                "anew from the checkpoint"
            ) from None
    return rows


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
