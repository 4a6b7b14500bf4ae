"""A program as text: the statements of a loop's body."""

from trainwell.optim.formula import Program


def statements(
    program: Program, arrays: dict[str, str], expressions: dict[str, str]
) -> tuple[list[str], list[tuple[str, str]], int]:
    """Writes a program as assignments; numbers are called `n0`, `n1`, ….

    Args:
        program: what is written.
        arrays: how the elements of its arrays are called.
        expressions: for each operation its text, with `{0}`, `{1}`, … for the operands.

    Returns:
        The assignments, the arrays' names with the expression of their new value, and how many numbers there are.
    """
    values = [arrays.get(name, "") for name in program.inputs]

    def term(i: int) -> str:
        return values[i] if i >= 0 else f"n{-1 - i}"

    lines = []
    for name, *operands in program.steps:
        lines.append(f"v{len(values)} = {expressions[name].format(*map(term, operands))}")
        values.append(f"v{len(values)}")
    operands = [i for _, *inputs in program.steps for i in inputs] + [i for _, i in program.outputs]
    return lines, [(name, term(i)) for name, i in program.outputs], max(0, *(-i for i in operands))


def expressions(**others: str) -> dict[str, str]:
    """Returns the operations' texts: those that all languages share, and a language's own."""
    return {
        "add": "{0} + {1}",
        "sub": "{0} - {1}",
        "mul": "{0} * {1}",
        "div": "{0} / {1}",
        "neg": "-{0}",
        "lerp": "{0} + {2} * ({1} - {0})",
        "greater": "{0} > {1}",
        "less": "{0} < {1}",
        **others,
    }
