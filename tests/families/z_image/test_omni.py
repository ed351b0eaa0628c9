"""Z-Image-Omni against diffusers, on a stored draw (tests/references/z_image_omni.py): a prompt's pieces, what the
vision tower sees, the transformer and whole pictures with 0, 1 and 3 references; and what is refused.

The check functions are the same that tests/parity/test_z_image.py runs on fresh draws.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.errors import ConfigError
from mlx_imagegen.families.base import Prompt
from mlx_imagegen.families.z_image.modulation import steps, tabulate
from mlx_imagegen.families.z_image.positions import picture_times
from mlx_imagegen.families.z_image.prompts import piece_ids
from mlx_imagegen.families.z_image.references import Read, ReferenceEncoder
from mlx_imagegen.families.z_image.transformer import ZImageTransformer
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.layers.patches import patchified, unpatchified
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.planning.plan import count_tokens, plan
from tests.draw import drawn_data
from tests.families.z_image.test_z_image import RELATIVE, open_z_image, options_of, relative
from tests.planning.test_plan import Counter, counted

DATA = drawn_data() / "z_image" / "omni"
COUNTS = {"none": 0, "one": 1, "three": 3}
PICTURES = (*COUNTS, "image")


def shown(folder: Path, count: int) -> list[Path]:
    return [folder / f"picture{index}.png" for index in range(1, count + 1)]


def check_pieces(folder: Path) -> None:
    family, reference = open_z_image(folder)
    options = options_of(folder)
    for way, count in COUNTS.items():
        pieces, cut = piece_ids(family.tokenizer, options["prompt"], options["length"], count)
        expected = [reference[f"ids.{way}.{place}"].tolist() for place in range(count + 2 if count else 1)]
        assert (pieces, cut) == (expected, "")


def in_order(features: np.ndarray) -> np.ndarray:
    """[rows, columns, F] -> [1, tokens, F], as diffusers puts the numbers."""
    return features.transpose(2, 0, 1).reshape(1, -1, features.shape[2])


def check_seen(folder: Path) -> None:
    """Pictures of other proportions; SigLIP2's positions are stretched to each."""
    family, reference = open_z_image(folder)
    encoder = family.reference_encoder
    assert isinstance(encoder, ReferenceEncoder)
    for index, path in enumerate(shown(folder, 3), 1):
        read, theirs = encoder.read(Image.open(path).convert("RGB"), 16), reference[f"seen.{index}"]
        assert read.grid == theirs.shape[:2]
        assert relative(read.features, in_order(theirs)) < RELATIVE


def check_omni_transformer(folder: Path, way: str) -> None:
    """All refiners, pieces that are filled up and others, places in time and space, tokens with noise and without."""
    family, r = open_z_image(folder)
    files, count, encoder = family.files, COUNTS[way], family.reference_encoder
    assert encoder is not None
    places = [0, 1, 2, 3, 4][: count + 2] if count else [3]
    states = [mx.array(r[f"states.{place}"])[None] for place in places]
    lengths = [each.shape[1] for each in states]
    read = [
        Read(mx.array(r[f"x.{i}"]).swapaxes(0, 1), mx.array(in_order(r[f"features.{i}"])), r[f"features.{i}"].shape[:2])
        for i in range(count)
    ]
    references = encoder.placed(read, picture_times(lengths)[:count]) if count else None
    branch = family.refined(mx.concatenate(states, axis=1), lengths, references)
    timestep = 1000 * (1 - float(r["t"][0]))
    *_, noisy, clean = steps(tabulate(files.config, files.transformer.fill, [999.0, timestep, 0.0], mx.float32))
    x = mx.array(r["x.3"]).swapaxes(0, 1)
    grid = x.shape[2] // 2, x.shape[3] // 2
    condition = family.condition(branch, grid, clean)
    model = files.transformer.fill(ZImageTransformer(files.config))
    out = model(patchified(x, 2, channels_last=True), condition.txt, condition.rope, noisy, clean=condition.clean)
    assert relative(unpatchified(out, grid, 2, channels_last=True)[0], r[f"out.{way}"]) < RELATIVE


def check_omni_picture(folder: Path, way: str) -> None:
    """The whole pipeline. With `one` reference the picture takes its size; `image` starts from a further one."""
    _, reference = open_z_image(folder)
    options = options_of(folder)
    asked: dict[str, Any] = {"seed": options["seed"], "steps": options["steps"], "guidance": 0.0}
    asked |= {"max_sequence_length": options["length"], "references": shown(folder, COUNTS.get(way, 3))}
    if way != "one":
        asked |= {name: options[name] for name in ("width", "height")}
    if way == "three":
        asked |= {name: options[name] for name in ("guidance", "negative_prompt")}
    if way == "image":
        first, *asked["references"] = asked["references"]
        asked |= {"image": first, "strength": options["strength"]}
    result = load(folder).generate(options["prompt"], **asked)
    ours, theirs = np.asarray(result.image).astype(int), reference[f"picture.{way}"].astype(int)
    assert ours.shape == theirs.shape and theirs.std() > 3
    assert np.abs(ours - theirs).max() <= 1


def test_pieces_equal_diffusers() -> None:
    check_pieces(DATA)


def test_what_is_seen_equals_transformers() -> None:
    check_seen(DATA)


@pytest.mark.parametrize("way", COUNTS)
def test_transformer_equals_diffusers(way: str) -> None:
    check_omni_transformer(DATA, way)


@pytest.mark.parametrize("way", PICTURES)
def test_picture_equals_diffusers(way: str) -> None:
    check_omni_picture(DATA, way)


def test_the_ways_differ() -> None:
    """So that references count: no picture of one size is another one's."""
    _, reference = open_z_image(DATA)
    none, three, image = (reference[f"picture.{way}"].astype(int) for way in ("none", "three", "image"))
    assert min(np.abs(none - three).max(), np.abs(none - image).max(), np.abs(three - image).max()) > 3


def changed(folder: Path, tmp_path: Path, file: str, **changes: Any) -> Path:
    copy = shutil.copytree(folder, tmp_path / "model")
    path = copy / file
    path.write_text(json.dumps(read_json(path) | changes))
    return copy


def test_a_folder_is_told_by_its_pipeline_or_its_transformer(tmp_path: Path) -> None:
    assert (recognize(DATA).title, recognize(DATA).edits) == ("Z-Image-Omni", True)
    copy = shutil.copytree(DATA, tmp_path / "model")
    (copy / "model_index.json").unlink()
    assert recognize(copy).title == "Z-Image-Omni"
    base = recognize(DATA.with_name("base"))
    assert (base.title, base.edits) == ("Z-Image", False)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer/config.json", {"siglip_feat_dim": None}, "'siglip_feat_dim' is not set"),
        ("siglip/config.json", {"hidden_size": 24}, "'hidden_size' is 24, but the transformer's siglip_feat_dim"),
        ("siglip/config.json", {"num_patches": 24}, "'num_patches' is 24"),
        ("siglip/config.json", {"model_type": "siglip_vision_model"}, "this is a siglip_vision_model"),
        ("siglip_processor/preprocessor_config.json", {"patch_size": 14}, "'patch_size' is 14, and the vision tower"),
    ],
)
def test_parts_that_do_not_fit_are_named(file: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(changed(DATA, tmp_path, file, **changes))


def test_references_are_read_once_for_both_branches_and_all_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, read = load(DATA, resident=False), ReferenceEncoder.read
    pictures: list[Image.Image] = []

    def counted(self: ReferenceEncoder, picture: Image.Image, multiple: int) -> Read:
        pictures.append(picture)
        return read(self, picture, multiple)

    monkeypatch.setattr(ReferenceEncoder, "read", counted)
    seen: list[set[str]] = []

    def look(event: Any) -> None:
        seen.append({name for name, component in pipeline.family.components.items() if component.loaded})

    asked = {"references": shown(DATA, 2), "guidance": 2.0, "steps": 1, "width": 32, "height": 32}
    pipeline.generate("a fox", seed=1, count=2, on_step=look, **asked)
    assert len(pictures) == 2 and [names - {"vae_decoder"} for names in seen] == [{"transformer"}] * 2


@pytest.mark.parametrize("size", [(60, 80), (70, 600)])
def test_small_and_narrow_references_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="too small|too narrow"):
        load(DATA).generate("a fox", references=[Image.new("RGB", size)], steps=1)


def test_the_last_reference_gives_the_size_where_none_is_asked_for() -> None:
    (job,) = load(DATA).jobs("a fox", references=shown(DATA, 2))
    assert (job.settings.width, job.settings.height) == (128, 64)


def test_large_references_get_the_area_of_the_picture_to_be_made() -> None:
    """Unless its size follows from them, and then the largest area that they may have."""
    files = load(DATA).family.files.references
    large, small = (1500, 1000), (640, 480)
    assert files.scaled_sizes([large, small], (512, 512), 16) == [(627, 418), small]
    assert files.scaled_sizes([small, large], (1248, 832), 16) == [small, (1254, 836)]
    assert files.scaled_sizes([large], (2048, 2048), 16) == [(2508, 1672)]


def test_a_plan_counts_what_references_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture's latents and what is seen of it are filled up, and so is each piece of the prompt."""
    pipeline = load(DATA)
    references = [Image.open(path) for path in shown(DATA, 3)]
    flops, settings = counted(pipeline, Counter(monkeypatch), width=48, height=48, steps=1, references=references)
    prompt = Prompt("", tuple(references))
    monkeypatch.setattr("mlx_imagegen.planning.plan.PROMPT_TOKENS", 20)
    tokens = count_tokens(pipeline.family, settings, prompt)
    for branch in pipeline._branches.values():
        assert (tokens.text, tokens.references) == (branch.txt.shape[1], len(branch.references.positions))
    assert plan(pipeline.family, settings, prompt=prompt).step_flops == pytest.approx(flops, rel=0.03)
