"""Runs benchmarks: python benchmarks/run.py [NAME …], all of them without a name.

A benchmark is a module beside this one whose `main()` measures and prints a table with one ratio in it. A ratio of two
things timed in turns in one run says something on any machine; seconds alone do not. What was tried, measured and kept
or undone stands in LOG.md.
"""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent


def names() -> dict[str, str]:
    """Every benchmark with the first line of its docstring."""
    modules = (path for path in sorted(HERE.glob("*.py")) if path != Path(__file__))
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0] for path in modules}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(asked: list[str]) -> int:
    known = names()
    unknown = [name for name in asked if name not in known]
    if unknown or "--help" in asked:
        print("\n".join(f"{name:16} {summary}" for name, summary in known.items()))
        return 2 if unknown != ["--help"] else 0
    for name in asked or known:
        print(f"== {name}", flush=True)
        load(name).main()
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    import mlx_imagegen  # noqa: F401  # before any benchmark imports mlx.core: it brings a fast BLAS in

    sys.exit(main(sys.argv[1:]))
