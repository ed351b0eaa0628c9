"""Runs all three libraries on the same random weights and prints ratio tables: run.py [z_image …] [--quants …].

Each cell runs in its own process, libraries in turns. Ratios are the peer's number over ours: above 1, ours is less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import numpy as np
from clock import BEGUN
from draw import CONFIGS, SIDE, TEXT_TOKENS, draw
from setup import python_of

from mlx_imagegen.machine import GB
from mlx_imagegen.measuring.environment import environment
from mlx_imagegen.measuring.tables import NONE, markdown, short
from tests.draw import drawn_data

SCRIPTS = {"ours": "ours.py", "mflux": "with_mflux.py", "diffusers": "with_diffusers.py"}
ROOTS = {"ours": ["mlx-imagegen"], "mflux": ["mflux"], "diffusers": ["diffusers", "transformers", "torch"]}
IMPORTS = {
    "ours": "from mlx_imagegen import pipeline; import mlx_imagegen.families.flux1.family",
    "mflux": "from mflux.models.flux.variants.txt2img.flux import Flux1",
    "diffusers": "from diffusers import FluxPipeline",
}
TINY = drawn_data() / "flux" / "dev"
FIRST = {
    "ours": "from mlx_imagegen import generate; "
    f"generate('a fox', model={str(TINY)!r}, seed=1, steps=2, width=64, height=64)",
    "diffusers": f"""
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast
kinds = {{"scheduler": FlowMatchEulerDiscreteScheduler, "vae": AutoencoderKL, "transformer": FluxTransformer2DModel,
    "text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer, "text_encoder_2": T5EncoderModel,
    "tokenizer_2": T5TokenizerFast}}
parts = {{name: kind.from_pretrained({str(TINY)!r}, subfolder=name) for name, kind in kinds.items()}}
FluxPipeline(**parts)("a fox", num_inference_steps=2, width=64, height=64)""",
}
# The bytes of all that a package needs, by what is installed; and what it asks for that is not.
SIZE = """
import importlib.metadata as m, json, re, sys
from packaging.requirements import Requirement
todo, seen, absent = list(sys.argv[1:]), {}, []
while todo:
    name = re.sub('[-_.]+', '-', todo.pop()).lower()
    if name in seen or name in absent: continue
    try: found = m.distribution(name)
    except m.PackageNotFoundError: absent.append(name); continue
    seen[name] = sum(f.locate().stat().st_size for f in found.files or [] if f.locate().is_file())
    for need in map(Requirement, found.requires or []):
        extras = [''] if not need.marker or 'extra' not in str(need.marker) else []
        if any(not need.marker or need.marker.evaluate({'extra': e}) for e in extras): todo.append(need.name)
print(json.dumps([sum(seen.values()), sorted(absent)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(CONFIGS), help="flux, flux2, qwen_image, z_image")
    parser.add_argument("--quants", nargs="+", default=["none", "q8", "q6", "q4"])
    parser.add_argument("--mflux", type=Path, default=python_of("mflux"), help="an environment's python")
    parser.add_argument("--diffusers", type=Path, default=python_of("diffusers"), help="an environment's python")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often the steps are walked, after one to warm up (3)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for all alike (one a core)")
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    os.environ |= {f"{name}_NUM_THREADS": str(args.threads) for name in ("OMP", "OPENBLAS", "MKL")}
    pythons = {"ours": Path(sys.executable), "mflux": args.mflux, "diffusers": args.diffusers}
    results: dict[str, Any] = {"where": environment(), "blocks": {}}
    for family in args.families:
        results["blocks"][family] = cells = blocks(family, args.quants, pythons, args.rounds)
        size = f"{SIDE}x{SIDE} pixels, {TEXT_TOKENS} text tokens, float32, CPU, {args.threads} threads"
        print(f"\n{family}: {size}\n\n{block_table(cells)}", flush=True)
    results["starting"] = starting(pythons)
    print(f"\n{starting_table(results['starting'])}\n\n" + ", ".join(f"{k} {v}" for k, v in results["where"].items()))
    if args.output:
        args.output.write_text(json.dumps(results, indent=1))


def blocks(family: str, quants: list[str], pythons: dict[str, Path], rounds: int) -> list[dict[str, Any]]:
    """One row a quant and library: seconds a step, memory, and how far its output is from ours in full precision."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = draw(family, Path(name))
        for quant in quants:
            for library in SCRIPTS:
                if library == "diffusers" and quant != "none":
                    continue
                row = _row(library, pythons[library], family, folder, quant, rounds)
                print(
                    f"{family} {quant} {library}: {row.get('reason') or short(row['seconds'])}",
                    file=sys.stderr,
                    flush=True,
                )
                rows.append(row)
    return rows


def _row(library: str, python: Path, family: str, folder: Path, quant: str, rounds: int) -> dict[str, Any]:
    output = folder / f"{library}-{quant}.npy"
    command = [str(python), str(HERE / SCRIPTS[library]), family, str(folder), quant, str(output), str(rounds)]
    row: dict[str, Any] = {"library": library, "quant": quant}
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {BEGUN: str(time.time())})
    if ran.returncode:
        return row | {"reason": (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]}
    row |= json.loads(ran.stdout.splitlines()[-1])
    row["seconds"] = statistics.median(row["processor_seconds"])
    row["difference"] = _difference(output, folder / "ours-none.npy")
    return row


def _difference(output: Path, reference: Path) -> float | None:
    if not reference.is_file():
        return None
    ours, theirs = np.load(reference), np.load(output)
    return float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))


def block_table(cells: list[dict[str, Any]]) -> str:
    own = {cell["quant"]: cell for cell in cells if cell["library"] == "ours" and "seconds" in cell}
    header = (
        "quant", "library", "processor s a step (least–most)", "wall s", "before, s", "ratio", "first step, s",
        "MLX peak GB", "process peak GB", "ratio", "difference",
    )  # fmt: skip
    return markdown(header, [_cells(cell, own.get(cell["quant"])) for cell in cells])


def _cells(cell: dict[str, Any], own: dict[str, Any] | None) -> list[str]:
    if "seconds" not in cell:
        return [cell["quant"], cell["library"], cell["reason"], *[NONE] * 8]
    steps, peak = cell["processor_seconds"], cell.get("mlx_peak_bytes")
    ratio = space = None
    if own:
        ratio = _whole(cell) / _whole(own)
        space = peak / own["mlx_peak_bytes"] if peak else cell["process_peak_bytes"] / own["process_peak_bytes"]
    difference = cell["difference"]
    return [
        cell["quant"], cell["library"], f"{short(cell['seconds'])} ({short(min(steps))}–{short(max(steps))})",
        short(statistics.median(cell["wall_seconds"])), short(cell["before_seconds"]), short(ratio),
        short(cell["first_seconds"][0]),
        short(peak / GB) if peak else NONE, short(cell["process_peak_bytes"] / GB), short(space),
        NONE if difference is None else f"{difference:.1e}",
    ]  # fmt: skip


def _whole(cell: dict[str, Any]) -> float:
    """A step with its share of what was computed before the loop, in a usual run of 28 steps."""
    return cell["seconds"] + cell["before_seconds"] / 28


def starting(pythons: dict[str, Path]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {library: {"import": [], "first": []} for library in SCRIPTS}
    for _ in range(4):  # in turns; the first round warms the disk
        for library, python in pythons.items():
            found[library]["import"].append(_timed(python, IMPORTS[library]))
            if library in FIRST:
                found[library]["first"].append(_timed(python, FIRST[library]))
    for library, python in pythons.items():
        ran = subprocess.run([python, "-c", SIZE, *ROOTS[library]], capture_output=True, text=True)
        found[library]["bytes"], found[library]["absent"] = (
            json.loads(ran.stdout) if ran.returncode == 0 else (None, [])
        )
    return found


def _timed(python: Path, code: str) -> float | None:
    timer = "import time; t = time.perf_counter()\n" + code + "\nprint(time.perf_counter() - t)"
    ran = subprocess.run([python, "-c", timer], capture_output=True, text=True, cwd=ROOT)
    return float(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else None


def starting_table(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for library, values in found.items():
        cells = [library]
        for name in ("import", "first"):
            times = [value for value in values[name][1:] if value is not None]
            cells.append(short(statistics.median(times)) if times else NONE)
        cells.append(short(values["bytes"] / GB) if values["bytes"] else NONE)
        rows.append([*cells, ", ".join(values["absent"]) or NONE])
    return markdown(
        ("library", "import, s", "first picture of a tiny FLUX.1, s", "installed, GB", "not installed"), rows
    )


if __name__ == "__main__":
    main()
