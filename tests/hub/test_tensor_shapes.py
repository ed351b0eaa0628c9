"""Outlines: folders without weights that are planned as the real ones are."""

import json
from pathlib import Path

import pytest

from mlx_imagegen import load
from mlx_imagegen.families import open_family
from mlx_imagegen.hub.manifest import data_folder, manifests
from mlx_imagegen.hub.tensor_shapes import each_name, has_tensor_shapes, shape_only_folder, write_shape_only
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import usual_job
from tests.draw import drawn_data
from tests.references.tensor_shapes import dumped, shapes_of

DATA = drawn_data()
STORED = ("flux/dev", "qwen_image/image", "qwen_image_21/model", "hidream_o1", "flux2/klein", "flux3/klein")
PUBLISHED = {
    "flux-dev",
    "flux-schnell",
    "flux-fill-dev",
    "flux-depth-dev",
    "qwen-image",
    "qwen-image-2.1",
    "qwen-image-layered",
    "hidream-o1",
}
PUBLISHED |= {"flux2-klein-4b", "flux2-klein-9b", "flux2-dev", "flux3-klein", "flux3-klein-base"}
PUBLISHED |= {"z-image", "z-image-turbo"}


@pytest.mark.parametrize("name", STORED)
def test_a_hollow_folder_is_planned_as_the_one_it_was_made_of(tmp_path: Path, name: str) -> None:
    made = shapes_of(DATA / name)
    assert json.loads(dumped(made)) == made
    write_shape_only(tmp_path, made)
    real = load(DATA / name)
    hollow = open_family(real.model.manifest, tmp_path, WeightTransforms())
    settings = usual_job(real.model.manifest, real.family.size_multiple).settings
    assert plan(hollow, settings, gpu=True) == plan(real.family, settings, gpu=True)
    for component in hollow.components.values():
        assert all(path.stat().st_blocks * 512 <= 2**16 for path in component.weights.checkpoint.paths)


def test_every_shapes_file_is_some_manifests() -> None:
    named = {manifest.tensor_shapes for manifest in manifests().values() if has_tensor_shapes(manifest)}
    files = {path.stem for path in (data_folder("weights") / "tensor_shapes").glob("*.json")}
    kinds = ("control network", "image adapter", "prompt upsampler")
    networks = {manifest.tensor_shapes for kind in kinds for manifest in manifests(kind).values()}
    assert named == files - networks == PUBLISHED and set(manifests()) >= PUBLISHED and files >= networks
    without = {name for name, manifest in manifests().items() if not has_tensor_shapes(manifest)}
    assert all(manifests()[name].folder for name in without)


# Parameters of the published transformers, as their owners count them, in billions.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("flux-dev", 11.9),
        ("flux-schnell", 11.9),
        ("flux-fill-dev", 11.9),
        ("flux-depth-dev", 11.9),
        ("flux-kontext-dev", 11.9),
        ("qwen-image", 20.4),
        ("qwen-image-2.1", 7.1),
        ("hidream-o1", 8.8),
        ("flux2-klein-4b", 3.9),
        ("flux2-klein-9b", 9.1),
        ("flux2-dev", 32.2),
        ("flux3-klein", 5.5),
        ("flux3-klein-base", 5.5),
        ("z-image", 6.15),
        ("z-image-turbo", 6.15),
    ],
)
def test_the_published_models_open(name: str, billions: float) -> None:
    manifest = manifests()[name]
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, WeightTransforms())
        transformer = family.components["transformer"].weights
        disk = sum({c.weights.component: c.weights.checkpoint.nbytes for c in family.components.values()}.values())
    count = sum(part.nbytes // (2 if part.dtype == "BF16" else 4) for part in transformer.slices.values())
    assert count / 1e9 == pytest.approx(billions, abs=0.05)
    assert disk == pytest.approx(manifest.download_bytes, rel=0.002)  # the rest is tokenizers
    assert not folder.exists()


def test_runs_of_names() -> None:
    assert list(each_name("blocks.{8-10}.0.norm")) == ["blocks.8.0.norm", "blocks.9.0.norm", "blocks.10.0.norm"]
    assert list(each_name("norm_out")) == ["norm_out"]
