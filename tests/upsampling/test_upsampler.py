"""The prompt upsampler against transformers' Qwen3.5 and diffusers' prompt_upsampler, on a stored draw.

tests/references/upsampler.py makes it. The check functions are the same that tests/parity/test_upsampler.py runs on
fresh ones.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mlx_imagegen.hub.networks import network_headers
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.text import qwen3_5
from mlx_imagegen.text.qwen import text_positions
from mlx_imagegen.text.qwen3_5 import from_published, is_centred
from mlx_imagegen.upsampling.api import open_upsampler, transforms
from mlx_imagegen.upsampling.boxes import locked_rows, reconciled
from mlx_imagegen.upsampling.references import prepared_references
from mlx_imagegen.upsampling.upsampler import TABLE, Upsampler, default_upsampler
from tests.draw import drawn_data

DRAWN = drawn_data() / "upsampler"
PUP = DRAWN / "pup"
LIMIT = 40  # tokens of a drawn answer
RELATIVE = 2e-5


def cases(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cases.json").read_text(encoding="utf-8"))


def shown(folder: Path, row: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(folder / f"picture{place + 1}.png") for place in row["pictures"]]


def edited(folder: Path, name: str, **changes: Any) -> Path:
    """A copy of the draw with fields of a JSON file changed; None takes one out."""
    copy = folder / "pup"
    shutil.copytree(PUP, copy)
    data = json.loads((copy / name).read_text(encoding="utf-8")) | changes
    (copy / name).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return copy


def converted(folder: Path, bits: int | None) -> Path:
    """As mlx-vlm saves it: its names, whole norms, channels last, and packed weights."""
    copy = edited(folder, "config.json", **({"quantization": {"bits": bits, "group_size": 32}} if bits else {}))
    out: dict[str, mx.array] = {}
    for name, value in mx.load(str(copy / "model.safetensors")).items():
        (ours,) = from_published(name)
        visual = ours.name.startswith(qwen3_5.VISUAL)
        path = ours.name.removesuffix(".weight")
        if is_centred(path) and name.endswith(".weight"):
            value = value + 1
        if value.ndim == 5:
            value = value.transpose(0, 2, 3, 4, 1)
        if name.endswith("conv1d.weight"):
            value = value.swapaxes(1, 2)
        name = (
            ours.name.replace(qwen3_5.VISUAL, "vision_tower.")
            if visual
            else ("language_model." + ("" if path == "lm_head" else "model.") + ours.name)
        )
        is_matrix = value.ndim == 2 and value.shape[1] % 32 == 0 and not visual
        if bits and is_matrix:
            codes, scales, biases = mx.quantize(value, 32, bits)
            out |= {name: codes, name.replace(".weight", ".scales"): scales, name.replace(".weight", ".biases"): biases}
        else:
            out[name] = value
    mx.save_safetensors(str(copy / "model.safetensors"), out)
    return copy


def check_questions(folder: Path) -> None:
    """Ids, with pictures' tokens among them, positions, and the logits after the question."""
    upsampler, reference = Upsampler(folder / "pup", WeightTransforms()), load_file(folder / "reference.safetensors")
    for place, row in enumerate(cases(folder)["questions"]):
        pictures = prepared_references(shown(folder, row)) if row["pictures"] else []
        asked = upsampler.question(row["request"], pictures, locked_rows(row["boxes"]) if row["boxes"] else None)
        assert asked.ids == row["ids"]
        assert text_positions(asked.ids, upsampler.picture_id, asked.grids).tolist() == row["positions"]
        logits, *_ = upsampler.read(asked, upsampler.features(pictures) if pictures else None)
        error = np.abs(np.array(logits) - reference[str(place)]).max() / np.abs(reference[str(place)]).max()
        assert error < RELATIVE, (place, error)


def check_captions(folder: Path) -> None:
    """Token for token, and the caption that is made of them."""
    upsampler = Upsampler(folder / "pup", WeightTransforms())
    for row in cases(folder)["questions"]:
        counts: list[int] = []
        notes: list[str] = []
        caption = upsampler.write(row["request"], shown(folder, row), row["boxes"], LIMIT, counts.append, notes.append)
        tokens = [token for token in row["tokens"] if token not in upsampler.stops]
        assert counts == list(range(1, len(tokens) + 1))
        assert bool(notes) == (len(tokens) == LIMIT), "said only where the answer has no end"
        assert caption == row["caption"]
        assert not upsampler.model.loaded


def check_boxes(folder: Path) -> None:
    for row in cases(folder)["answers"]:
        assert reconciled(row["answer"], locked_rows(row["boxes"])) == row["caption"], row


def test_questions() -> None:
    check_questions(DRAWN)


def test_captions() -> None:
    check_captions(DRAWN)


def test_answers_with_boxes() -> None:
    check_boxes(DRAWN)


def test_an_answer_with_a_number_beyond_all_floats_has_no_such_box() -> None:
    row = f'{{"id": "dog_1", "desc": "a dog", "bbox": [0, 0, 5, {10**400}]}}'
    locked = locked_rows([{"id": "cat_1", "desc": "a cat", "bbox": [0, 0, 1, 1]}])
    assert reconciled(f"a cat <cat_1> and <dog_1> [{row}]", locked).endswith('"desc": "a cat"}]')


def test_the_published_shapes_bind_with_none_left_over() -> None:
    """Qwen3.5-9B's, of which the upsampler is a fine-tune; packed and not."""
    with network_headers("flux3-pup", default_upsampler(), "upsample") as folder:
        found = Upsampler(folder, transforms("q4"))
        component, _ = found.tower
    assert len(found.config.layer_types) == 32 and found.config.layer_types.count("full_attention") == 8
    assert not found.is_converted
    assert len(component.weights.needed) + len(found.weights.needed) == 760
    dense = found.model.held_bytes(2, lambda *_: None)
    sizes = {name: math.prod(found.weights.shape(name)) for name in found.weights.needed}
    assert dense == 2 * (sum(sizes.values()) - sizes[TABLE])  # whose rows are gathered
    assert found.model.held_bytes(2) / dense == pytest.approx(4.5 / 16, rel=0.01)


def test_what_mlx_vlm_has_saved_writes_the_same(tmp_path: Path) -> None:
    folder = converted(tmp_path, None)
    row = cases(DRAWN)["questions"][2]
    found = open_upsampler(folder, None)
    assert found.is_converted
    pictures = shown(DRAWN, row)
    assert found.write(row["request"], pictures, limit=LIMIT) == row["caption"]


def test_a_penalty_on_repetitions_is_what_transformers_would_read(tmp_path: Path) -> None:
    upsampler = Upsampler(edited(tmp_path, "generation_config.json", repetition_penalty=10.0), WeightTransforms())
    row = cases(DRAWN)["questions"][1]
    penalized = upsampler.write(row["request"], limit=LIMIT)
    assert penalized != row["caption"]
