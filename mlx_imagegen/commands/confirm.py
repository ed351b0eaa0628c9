"""A question on the terminal, for what cannot be undone or was not asked for."""

import sys


def confirm(question: str) -> bool:
    """Whether the user says yes; nobody can where standard input is no terminal."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
