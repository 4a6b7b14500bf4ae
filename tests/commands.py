"""Commands, run in this process."""

from trainwell.cli import main


def call(capsys, *words):
    """Runs a command; returns its exit code, output and messages."""
    try:
        main([str(word) for word in words])
        code = 0
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out, said.err
