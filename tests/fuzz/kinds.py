"""What is damaged, and who reads it: one `Kind` for each kind of file that the library opens.

In: an empty folder and a `random.Random`. Out: files made from the demo models and the stored draws, one of them
damaged, and a call that reads them as a user's command would.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from PIL import Image, PngImagePlugin

from mlx_imagegen import cache as kept
from mlx_imagegen import kernels
from mlx_imagegen.commands import requests
from mlx_imagegen.hub import manifest as manifest_module
from mlx_imagegen.hub.file_info import file_info
from mlx_imagegen.hub.recognition import find
from mlx_imagegen.image import read_metadata
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.lora.file import open_lora
from mlx_imagegen.measuring import compare
from mlx_imagegen.packing.recipes import read_recipe
from mlx_imagegen.planning.fitting import check_fits
from mlx_imagegen.request.job import resolve
from mlx_imagegen.request.sizes import multiple_of
from mlx_imagegen.text.tokenizer import clip_tokenizer, qwen_tokenizer, t5_tokenizer
from tests.draw import drawn_data
from tests.fuzz import mutators
from tests.fuzz.mutators import Mutator

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "weights" / "demo"
TEXT = "a red circle, ü 字 \u2028 </s><|im_end|>'s 123"

Read = Callable[[], object]


@dataclass(frozen=True)
class Kind:
    make: Callable[[Path, Random], Read]
    weight: int  # how many cases of a sample, next to the others'


def damage(path: Path, mutate: Mutator, dice: Random) -> None:
    if dice.random() < 0.04:
        mutators.replace_file(path, dice)
        return
    data = path.read_bytes()
    path.unlink()  # it may be a link to the file that it comes from
    path.write_bytes(mutate(data, dice))


def linked(source: Path, folder: Path) -> Path:
    """A copy of a model's folder: small files, and links to the weights."""
    for path in source.rglob("*"):
        place = folder / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif path.suffix == ".safetensors":
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    return folder


def safetensors(folder: Path, dice: Random) -> Read:
    path = folder / "model.safetensors"
    shutil.copyfile(dice.choice(_small_weights()), path)
    damage(path, mutators.mutate_safetensors, dice)
    place = dice.choice((path, folder))

    def read() -> None:
        tensors = open_checkpoint(place)
        for tensor in tensors.values():
            tensor.read()
        file_info(path)

    return read


@cache
def _small_weights() -> list[Path]:
    names = ("flux/text_encoder/model.safetensors", "loras/flux-night.safetensors")
    return [DEMO / name for name in names] + [ROOT / "tests" / "data" / "comfy" / "formats.safetensors"]


def sharded(folder: Path, dice: Random) -> Read:
    shutil.copyfile(DEMO / "loras" / "flux-night.safetensors", folder / "a.safetensors")
    names = open_checkpoint(folder / "a.safetensors").keys()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "a.safetensors")}))
    damage(index, mutators.mutate_json, dice)
    return lambda: open_checkpoint(folder)


def parts(folder: Path, dice: Random) -> Read:
    source = DEMO / "loras" / "flux-night.safetensors"
    rows = {name: [0, name, 0, None, False, False, None] for name in open_checkpoint(source)}
    index = folder / "parts.safetensors.index.json"
    index.write_text(json.dumps({"files": [str(source)], "parts": rows}))
    damage(index, mutators.mutate_json, dice)
    return lambda: [tensor.read() for tensor in open_checkpoint(folder).values()]


def gguf(folder: Path, dice: Random) -> Read:
    from gguf import GGMLQuantizationType as Type

    from tests.gguf_files import draw_blocks, write_gguf

    types = dice.sample((Type.Q4_0, Type.Q8_0, Type.Q4_K, Type.Q6_K, Type.Q5_1), 2)
    path = folder / "model.gguf"
    write_gguf(path, {f"block.{n}.weight": draw_blocks(kind, 4, 512) for n, kind in enumerate(types)}, rows=[1, 2])
    damage(path, mutators.mutate_bytes, dice)

    def read() -> None:
        for tensor in open_checkpoint(path).values():
            tensor.read()
        file_info(path)

    return read


def configs(folder: Path, dice: Random) -> Read:
    """A JSON file of a model, and all that a plan of a picture reads."""
    sources = [DEMO / "flux", DEMO / "hidream_o1", DEMO / "qwen_image", *drawn_models()]
    source = dice.choice(sources)
    linked(source, folder / source.name)
    names = [*(folder / source.name).rglob("*config.json"), *(folder / source.name).glob("model_index.json")]
    damage(dice.choice(sorted(names)), mutators.mutate_json, dice)

    def read() -> None:
        from mlx_imagegen.pipeline import load

        pipeline = load(str(folder / source.name), on_download=lambda line: None)
        least = max(64, pipeline.family.size_multiple)
        needed = pipeline.model.manifest.extras.get("references_least", 0)
        pictures = {"references": [Image.new("RGB", (least, least))] * needed} if needed else {}
        jobs = pipeline.jobs("a", seed=1, steps=1, width=least, height=least, **pictures)
        check_fits(pipeline.family, jobs[0], pipeline.model.manifest)

    return read


@cache
def drawn_models() -> list[Path]:
    names = (
        "flux/dev", "flux2/dev", "flux2/klein", "flux3/base", "flux3/klein", "hidream_o1", "qwen_image/edit",
        "qwen_image/layered", "qwen_image_21/model", "z_image/base", "z_image/omni", "z_image/turbo",
    )  # fmt: skip
    return [drawn_data() / name for name in names]


def manifest(folder: Path, dice: Random) -> Read:
    sources = sorted(path for path in (ROOT / "weights").glob("*.toml") if "base =" not in path.read_text())
    path = folder / "m.toml"
    shutil.copyfile(dice.choice(sources), path)
    damage(path, mutators.mutate_toml, dice)

    def read() -> None:
        found = manifest_module._read(path)
        resolve(found, multiple_of(found), "a", seed=1)

    return read


def lora(folder: Path, dice: Random) -> Read:
    path = folder / "lora.safetensors"
    shutil.copyfile(DEMO / "loras" / "flux-night.safetensors", path)
    if dice.random() < 0.5:
        config = {"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k|to_v": 3.0}}
        adapter = folder / "adapter_config.json"
        adapter.write_text(json.dumps(config | {"use_rslora": False, "init_lora_weights": True}))
        damage(adapter, mutators.mutate_json, dice)
    else:
        damage(path, mutators.mutate_safetensors, dice)

    def read() -> None:
        file = open_lora(path, lambda line: None)
        scales = [entry.scale for entry in file.entries.values()]
        print(scales, file.format, file.family, file.digest)

    return read


def tokenizer(folder: Path, dice: Random) -> Read:
    sources = {
        DEMO / "flux" / "tokenizer": clip_tokenizer,
        DEMO / "flux" / "tokenizer_2": t5_tokenizer,
        DEMO / "qwen_image" / "tokenizer": qwen_tokenizer,
    }
    source = dice.choice(list(sources))
    linked(source, folder / "t")
    if dice.random() < 0.5:
        (folder / "t" / "tokenizer.json").unlink(missing_ok=True)
    mutate = {".json": mutators.mutate_json, ".model": mutators.mutate_fields}
    path = dice.choice([path for path in sorted((folder / "t").iterdir()) if path.suffix != ".jinja"])
    damage(path, mutate.get(path.suffix, mutators.mutate_bytes), dice)
    return lambda: sources[source](folder / "t").encode(TEXT, 24)


def jobs_file(folder: Path, dice: Random) -> Read:
    path = folder / "jobs.jsonl"
    path.write_text('{"prompt": "a\\u2028b", "seed": 3, "steps": 2, "width": 64, "height": 64}\na prompt\n')
    damage(path, mutators.mutate_lines, dice)
    found = manifest_module.manifests()["flux-demo"]

    def read() -> None:
        for job in requests.read_jobs(path, "--prompt-file"):
            resolve(found, 16, **job)

    return read


def recipe(folder: Path, dice: Random) -> Read:
    path = folder / "q.toml"
    shutil.copyfile(dice.choice(sorted((ROOT / "quant").glob("*.toml"))), path)
    damage(path, mutators.mutate_toml, dice)
    family = dice.choice(("flux1", "qwen_image", "hidream_o1"))

    def read() -> None:
        found = read_recipe(str(path), family)
        found.packing("transformer", "transformer_blocks.3.attn.to_q", (64, 64), 19)
        found.drops("vae", "encoder.x")

    return read


def record(folder: Path, dice: Random) -> Read:
    written = {
        "model": "flux-demo", "prompt": "a red circle", "seed": 3, "steps": 2, "width": 64, "height": 64,
        "guidance": 2.0, "lora": [["x.safetensors", 1.0]], "version": "0.1", "report": {"seconds": {"total": 1.0}},
    }  # fmt: skip
    text = mutators.mutate_json(json.dumps(written).encode(), dice).decode("utf-8", "replace")
    info = PngImagePlugin.PngInfo()
    info.add_itxt("mlx_imagegen", text.replace("\0", "\\u0000"))
    path = folder / "a.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    if dice.random() < 0.2:
        damage(path, mutators.mutate_bytes, dice)

    def read() -> None:
        found = read_metadata(path)
        requests._check_record(path, found)

    return read


def kept_arrays(folder: Path, dice: Random) -> Read:
    import mlx.core as mx

    kept.keep(folder, "key", {"x": mx.ones((4, 4)), "y": mx.ones((3,), mx.bfloat16)})
    damage(folder / "key.safetensors", mutators.mutate_safetensors, dice)
    choices = folder / "kernels.json"
    choices.write_text('{"a|b": {"kernel": "packed", "seconds": [1.0, 2.0]}}')
    damage(choices, mutators.mutate_json, dice)

    def read() -> None:
        kept.recall(folder, "key")
        kernels._known(choices)

    return read


def prompts(folder: Path, dice: Random) -> Read:
    path = folder / "p.toml"
    shutil.copyfile(ROOT / "examples" / "prompts.toml", path)
    damage(path, mutators.mutate_toml, dice)
    return lambda: compare.read_lines(path)


def made_by_converter(folder: Path, dice: Random) -> Read:
    """The note that the converter leaves in a folder, and all that recognizes the folder by it."""
    linked(DEMO / "flux", folder / "m")
    note = folder / "m" / "mlx_imagegen.json"
    written = {
        "source": "x", "manifest": "flux-demo", "family": "flux1", "recipe": "q4", "revision": None, "lora": [],
        "folded": {"steps": 8, "size": [128, 128], "guidance": 2.0}, "identity": "0",
    }  # fmt: skip
    note.write_text(json.dumps(written))
    damage(note, mutators.mutate_json, dice)
    return lambda: find(str(folder / "m"))


KINDS = {
    "safetensors": Kind(safetensors, 6),
    "sharded": Kind(sharded, 2),
    "parts": Kind(parts, 2),
    "gguf": Kind(gguf, 4),
    "configs": Kind(configs, 6),
    "manifest": Kind(manifest, 4),
    "lora": Kind(lora, 4),
    "tokenizer": Kind(tokenizer, 5),
    "jobs": Kind(jobs_file, 3),
    "recipe": Kind(recipe, 4),
    "record": Kind(record, 3),
    "kept": Kind(kept_arrays, 2),
    "prompts": Kind(prompts, 2),
    "converter": Kind(made_by_converter, 3),
}


def names(count: int) -> list[str]:
    """So many cases' kinds, by their weights."""
    turn = [name for name, kind in KINDS.items() for _ in range(kind.weight)]
    return (
        [turn[number * len(turn) // count % len(turn)] for number in range(count)]
        if count < len(turn)
        else [turn[number % len(turn)] for number in range(count)]
    )


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
