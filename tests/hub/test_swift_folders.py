"""Folders that Z-Image.swift has saved: diffusers' names, its choice of what is packed, its list and its shards."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.errors import CheckpointError, MissingFileError
from mlx_imagegen.hub.file_info import folder_info
from mlx_imagegen.loading.checkpoint import open_checkpoint
from tests.distributed.wide_models import draw_wide

GROUP = 32
UNPACKED = ("embed", "norm", "all_x_embedder", "all_final_layer")
OPTIONS: dict[str, Any] = {"seed": 3, "steps": 2, "width": 32, "height": 48}


def save_as_swift(folder: Path, same: Path, mode: str, bits: int) -> None:
    """As its `ZImageQuantizer` does; `same` is left with the numbers of what was packed."""
    layers = []
    for component in ("transformer", "text_encoder"):
        (path,) = (same / component).glob("*.safetensors")
        saved, numbers = {}, {}
        for name, value in mx.load(str(path)).items():
            saved[name] = numbers[name] = value
            module = name.removesuffix(".weight")
            packs = name.endswith(".weight") and value.ndim == 2 and value.shape[1] % GROUP == 0
            if not packs or any(part in name for part in UNPACKED):
                continue
            parts = mx.quantize(value.astype(mx.float32), GROUP, bits, mode)
            saved |= dict(zip((name, f"{module}.scales", f"{module}.biases"), parts, strict=False))
            numbers[name] = mx.dequantize(*parts, group_size=GROUP, bits=bits, mode=mode).astype(mx.float32)
            sizes = {"group_size": GROUP, "bits": bits, "mode": mode}
            layers.append({"name": f"{component}.{module}", "shape": list(value.shape), "file": "", **sizes})
        mx.save_safetensors(str(path), numbers)
        for old in (folder / component).glob("*.safetensors*"):
            old.unlink()
        names = sorted(saved)
        for number, shard in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
            file = folder / component / f"model-{number:05}-of-00002.safetensors"
            mx.save_safetensors(str(file), {name: saved[name] for name in shard})
    listed = {"model_id": "Tongyi-MAI/Z-Image", "group_size": GROUP, "bits": bits, "mode": mode, "layers": layers}
    (folder / "quantization.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(("mode", "bits"), [("affine", 8), ("mxfp4", 4)])
def test_a_saved_folder_gives_the_picture_of_its_numbers(tmp_path: Path, mode: str, bits: int) -> None:
    same = draw_wide("z_image/base", tmp_path / "numbers")
    saved = shutil.copytree(same, tmp_path / "saved")
    save_as_swift(saved, same, mode, bits)
    said = {"saved_by": f"Z-Image.swift, packed to {bits} bits ({mode})", "saved_from": "Tongyi-MAI/Z-Image"}
    assert folder_info(saved).items() >= said.items() and "saved_by" not in folder_info(same)
    ours, theirs = load(saved), load(same)
    assert ours.family.weights["transformer"].stored and ours.family.weights["text_encoder"].stored
    pictures = [np.array(each.generate("a red fox", **OPTIONS).image, np.int16) for each in (ours, theirs)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1 and pictures[1].std() > 4


def test_a_list_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = draw_wide("z_image/base", tmp_path / "model")
    (folder / "quantization.json").write_text('{"layers": [7]}')
    with pytest.raises(CheckpointError, match="'layers' has 7, which names no layer"):
        load(folder)


def test_shards_need_no_index_where_their_names_say_that_all_are_there(tmp_path: Path) -> None:
    for number in (1, 2):
        mx.save_safetensors(str(tmp_path / f"model-{number:05}-of-00002.safetensors"), {f"{number}": mx.ones(1)})
    assert set(open_checkpoint(tmp_path)) == {"1", "2"}
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(MissingFileError, match="but no index file"):
        open_checkpoint(tmp_path)
