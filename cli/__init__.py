"""The command line: main.py, and one file per verb."""


def command() -> int:
    """What ``lutra`` runs. Ctrl-C ends it without a word from the first import on, which main() is too late for."""
    try:
        from lutra.cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130
