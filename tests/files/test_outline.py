"""Outlines: folders without weights that are planned as the real ones are."""

import json
from pathlib import Path

import pytest

from mlx_imagegen import load
from mlx_imagegen.files.loading import Changes
from mlx_imagegen.files.manifest import data_folder, manifests
from mlx_imagegen.files.outline import each_name, has_outline, outlined, write_hollow
from mlx_imagegen.pipeline import open_family
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import usual_job
from tests.references.outlines import dumped, outline

DATA = Path(__file__).parents[1] / "data"
STORED = ("flux/dev", "qwen_image/image", "hidream_o1")
PUBLISHED = {"flux-dev", "flux-schnell", "qwen-image", "hidream-o1"}


@pytest.mark.parametrize("name", STORED)
def test_a_hollow_folder_is_planned_as_the_one_it_was_made_of(tmp_path: Path, name: str) -> None:
    made = outline(DATA / name)
    assert json.loads(dumped(made)) == made
    write_hollow(tmp_path, made)
    real = load(DATA / name)
    hollow = open_family(real.model.manifest, tmp_path, Changes())
    settings = usual_job(real.model.manifest, real.family.size_multiple).settings
    assert plan(hollow, settings, gpu=True) == plan(real.family, settings, gpu=True)
    for component in hollow.components.values():
        assert all(path.stat().st_blocks * 512 <= 2**16 for path in component.weights.checkpoint.paths)


def test_every_outline_is_some_manifests() -> None:
    named = {manifest.extras["outline"] for manifest in manifests().values() if has_outline(manifest)}
    files = {path.stem for path in (data_folder("weights") / "outlines").glob("*.json")}
    assert named == files == PUBLISHED and set(manifests()) >= PUBLISHED
    without = {name for name, manifest in manifests().items() if not has_outline(manifest)}
    assert all(manifests()[name].folder for name in without)


# Parameters of the published transformers, as their owners count them, in billions.
@pytest.mark.parametrize(
    ("name", "billions"), [("flux-dev", 11.9), ("flux-schnell", 11.9), ("qwen-image", 20.4), ("hidream-o1", 8.8)]
)
def test_the_published_models_open(name: str, billions: float) -> None:
    manifest = manifests()[name]
    with outlined(manifest) as folder:
        family = open_family(manifest, folder, Changes())
        transformer = family.components["transformer"].weights
        disk = sum({c.weights.component: c.weights.checkpoint.nbytes for c in family.components.values()}.values())
    count = sum(part.tensor.nbytes // (2 if part.tensor.dtype == "BF16" else 4) for part in transformer.slices.values())
    assert count / 1e9 == pytest.approx(billions, abs=0.05)
    assert disk == pytest.approx(manifest.download_bytes, rel=0.002)  # the rest is tokenizers
    assert not folder.exists()


def test_runs_of_names() -> None:
    assert list(each_name("blocks.{8-10}.0.norm")) == ["blocks.8.0.norm", "blocks.9.0.norm", "blocks.10.0.norm"]
    assert list(each_name("norm_out")) == ["norm_out"]
