"""Writes into the cards what can go stale: what was measured, from the raw rows, and the defaults, from the code.

    python docs/cards/tables.py           # after new rows, or a new default
    python docs/cards/tables.py --check   # names the cards that are not up to date, and leaves with 1

What is between two marks, `<!-- measured -->` and `<!-- /measured -->`, is written anew; the rest of a card is left.
`compared.py` has what was measured of recipes, `ensembles_table.py` what of averages and members, `transfer_table.py`
what of pretrained networks, `benches.py` what other scripts did, `defaults.py` the defaults.
"""

import re
import sys
from pathlib import Path

import benches
import ensembles_table
import transfer_table
from compared import evidence_of, measured, read
from defaults import defaults

HERE = Path(__file__).parent


def told(card: str) -> str:
    """Returns what was measured, for a card."""
    if card == "lr_range":
        return benches.range_test(benches.RANGE_TEST)
    if card in ensembles_table.ARMS:
        return ensembles_table.measured(card, ensembles_table.read())
    if card in transfer_table.RECIPES:
        return transfer_table.measured(card, transfer_table.read())
    recipes = measured(card, read(evidence_of(card)))
    return f"{recipes}\n\n{benches.coadaptation(benches.COADAPTATION)}" if card == "dropout" else recipes


def filled(card: str, text: str) -> str:
    """Returns a card's text with what is between the marks written anew."""
    for mark, content in (("measured", told(card)), ("defaults", defaults(card))):
        pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"{card}.md must have the marks <!-- {mark} --> and <!-- /{mark} --> once")
        text = pattern.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
    return text


def main() -> None:
    stale = []
    for path in sorted(HERE.glob("*.md")):
        if path.stem == "index":
            continue
        old = path.read_text(encoding="utf-8")
        new = filled(path.stem, old)
        if new != old:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    print(f"{'stale' if '--check' in sys.argv else 'written'}: {', '.join(stale) or 'none'}")
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
