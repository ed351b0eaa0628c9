"""The structure of the package: imports point down, families stand on one floor and never import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "mlx_imagegen"
PACKAGE = ROOT.name
# From the face down. A module belongs to the longest name that it begins with; it may import from its own floor and
# from those below. "families.*" are the families' folders.
FLOORS: list[tuple[str, ...]] = [
    ("__main__", "quantize", "cli", "commands", "serving"),
    ("api", ""),
    ("measuring", "selftest"),
    ("quantization", "distributed"),
    ("pipeline", "preflight"),
    ("planning",),
    ("lora", "result", "upsampling"),
    ("request", "kernels"),
    ("families.*",),
    (
        "families.base",
        "families.cell_files",
        "families.cells",
        "families.controlled",
        "families.controls",
        "families.editing",
        "families.flux_names",
        "families.folder",
        "families.image_prompts",
        "families.language",
        "families.latents",
        "families.schedule_tables",
        "families.step_cache",
        "families.transformer_config",
    ),
    ("folding",),
    ("autoencoders", "text", "vision", "sampling", "previews"),
    ("hub", "packing.recipes"),
    ("families",),
    ("loading", "cache", "packing"),
    ("layers", "report"),
    ("image", "edges", "masks", "seams"),
    ("limits",),
    ("machine", "random"),
    ("distributed.group", "distributed.connections", "distributed.watch", "distributed.messages"),
    ("launched", "streams", "interrupts"),
    ("precision", "atomic", "bfloat", "runtime", "errors", "footprint", "escaping", "paths", "documents"),
]
SHARED = {name.partition(".")[2] for floor in FLOORS for name in floor if name.startswith("families.")} - {"*"}


def modules() -> dict[str, Path]:
    out = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        out[".".join(part for part in parts if part != "__init__")] = path
    return out


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """The package's modules that a module imports, inside functions too, but for annotations alone not."""
    path = MODULES[name]
    base = name.split(".") if name else []
    base = base if path.name == "__init__.py" else base[:-1]
    tree = ast.parse(path.read_text())
    hinted = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in hinted:
            continue
        if node.level:
            module = ".".join([*base[: len(base) - node.level + 1], *filter(None, [node.module])])
        elif (node.module or "").split(".")[0] == PACKAGE:
            module = (node.module or "").partition(".")[2]
        else:
            continue
        for alias in node.names:
            inner = f"{module}.{alias.name}" if module else alias.name
            yield inner if inner in MODULES else module


def floor(name: str) -> int:
    """Counted from the top."""
    parts = name.split(".")
    if parts[0] == "families" and len(parts) > 1 and parts[1] not in SHARED:
        parts[1] = "*"
    names = {known: index for index, floor in enumerate(FLOORS) for known in floor}
    for length in range(min(2, len(parts)), 0, -1):
        if (known := ".".join(parts[:length])) in names:
            return names[known]
    raise AssertionError(f"{name} stands on no floor: add it to FLOORS")


def test_no_import_points_up() -> None:
    up = [f"{name} -> {other}" for name in MODULES for other in imported(name) if other and floor(other) < floor(name)]
    assert not up, "\n".join(sorted(up))


def test_there_is_no_circle() -> None:
    """Depth first: a module that is met while its own imports are still being followed closes a circle."""
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in dict.fromkeys(imported(name)):
                if other != name and other:  # the package itself holds the version alone
                    follow(other, (*path, name))
            done.add(name)

    for name in MODULES:
        follow(name, ())


def test_families_do_not_import_each_other() -> None:
    for name in MODULES:
        parts = name.split(".")
        if parts[0] == "families" and len(parts) > 2:
            others = {other.split(".")[1] for other in imported(name) if other.startswith("families.")}
            assert others <= SHARED | {parts[1]}, name


def test_no_family_is_named_outside_its_folder() -> None:
    """In code; prose may give examples."""
    from mlx_imagegen.families import BUILT_IN

    for name, path in MODULES.items():
        if name == "families" or (name.split(".")[:1] == ["families"] and len(name.split(".")) > 2):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in BUILT_IN:
                raise AssertionError(f"{name}, line {node.lineno}: '{node.value}'")
