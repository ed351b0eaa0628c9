"""Runs a benchmark: python benchmarks/run.py NAME [its arguments]. Without a name it lists them.

A benchmark is a script next to this one. Scripts that compare variants time them in turns in one run and print a ratio,
because ratios carry over to other machines and seconds do not. LOG.md has what was tried, measured and kept or undone.
"""

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def names() -> dict[str, str]:
    """Every benchmark with the first line of its docstring. A module without `main` is a part of others."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name != "run.py" and any(getattr(node, "name", "") == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


def main(arguments: list[str]) -> int:
    known = names()
    name = arguments[0] if arguments else "--help"
    if name not in known:
        print("\n".join(f"{each:16} {summary}" for each, summary in known.items()))
        return 0 if name in ("-h", "--help") else 2
    sys.argv = arguments
    runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    import mlx_imagegen  # noqa: F401  # before any benchmark imports mlx.core: it brings a fast BLAS in

    sys.exit(main(sys.argv[1:]))
