"""The prompt upsampler against transformers' Qwen3.5 and diffusers' prompt_upsampler, on a stored draw.

tests/references/upsampler.py makes it. The check functions are the same that tests/parity/test_upsampler.py runs on
fresh ones.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.text.qwen import text_positions
from mlx_imagegen.upsampling.boxes import locked_rows, reconciled
from mlx_imagegen.upsampling.references import prepared_references
from mlx_imagegen.upsampling.upsampler import Upsampler
from tests.draw import drawn_data

DRAWN = drawn_data() / "upsampler"
LIMIT = 40  # tokens of a drawn answer
RELATIVE = 2e-5


def cases(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cases.json").read_text(encoding="utf-8"))


def shown(folder: Path, row: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(folder / f"picture{place + 1}.png") for place in row["pictures"]]


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
        caption = upsampler.write(row["request"], shown(folder, row), row["boxes"], LIMIT, counts.append)
        tokens = [token for token in row["tokens"] if token not in upsampler.stops]
        assert counts == list(range(1, len(tokens) + 1))
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
