"""Qwen-Image-Layered against diffusers: positions, timestep, autoencoder with alpha, schedule, and whole layers, on a
stored draw; and what users ask of it.

tests/references/qwen_layered.py makes the draw. The check functions are the same that tests/parity/test_qwen_layered.py
runs on fresh ones.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mlx_imagegen import Result, load, quantize
from mlx_imagegen.cli import main
from mlx_imagegen.errors import ConfigError, MissingFileError, RequestError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.base import Settings
from mlx_imagegen.families.qwen_image import captions
from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.family import THETA, QwenImage
from mlx_imagegen.families.qwen_image.modulation import ADDED, steps, tabulate
from mlx_imagegen.families.qwen_image.positions import positions
from mlx_imagegen.families.qwen_image.transformer import QwenImageTransformer
from mlx_imagegen.hub.abilities import abilities
from mlx_imagegen.hub.manifest import Model, manifests
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.image import laid_over, read_metadata
from mlx_imagegen.layers.rope import rope_table
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.lora.merge import Merge
from mlx_imagegen.packing.recipes import read_recipe
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.quantization.layout import layouts
from mlx_imagegen.request.job import Job, resolve, usual_job
from mlx_imagegen.text.tokenizer import qwen_tokenizer
from tests.comfy_files import cache_tokenizers, read_tensors, save_with_config
from tests.draw import drawn_data
from tests.families.qwen_image.test_qwen_image import relative
from tests.quantization.test_fold import leave_as_stored

DATA = drawn_data() / "qwen_image/layered"
PUBLISHED = Path(__file__).parents[4] / "shared/facts/manifests"
WAYS = ("seed", "opaque", "one", "cfg", "normalized", "described")
CAPTION_TOKENS = 24  # of a drawn caption
RELATIVE = 1e-5
LAYERED = manifests()["qwen-image-layered"]
PHOTO = Image.new("RGB", (300, 200), "navy")


def open_pipeline(folder: Path) -> Pipeline:
    """`load`, with the area of the draw's pictures in the manifest's place."""
    options, manifest = json.loads((folder / "options.json").read_text()), recognize(folder)
    manifest = replace(manifest, extras=manifest.extras | {"references_area": options["area"]})
    merge = Merge()
    family = QwenImage.open(folder, manifest, WeightTransforms((merge,)))
    return Pipeline(Model(manifest, folder, str(folder)), folder, family, None, merge)


def check_transformer(folder: Path) -> None:
    """Frames and condition by their places in rope, with the added vector in the modulation."""
    family, reference = open_pipeline(folder).family, load_file(folder / "reference.safetensors")
    assert isinstance(family, QwenImage)
    config, weights = family.files.config, family.files.transformer
    model, features = weights.fill(QwenImageTransformer(config)), mx.array(reference["features"])
    (modulation,) = steps(tabulate(config, weights.fill, [float(reference["t"][0]) * 1000], mx.float32))
    for frames in (2, 4):
        grid = tuple(reference[f"grid{frames}"].tolist())
        where = positions(features.shape[1], [grid] * (frames + 1), layered=True)
        rope = rope_table(where, config.axes_dims_rope, THETA)
        x = mx.array(reference[f"x{frames}"])
        v = model(x, features, rope, modulation, grid[0] * grid[1])
        assert relative(v, reference[f"v{frames}"]) < RELATIVE


def check_autoencoder(folder: Path) -> None:
    family, reference = open_pipeline(folder).family, load_file(folder / "reference.safetensors")
    mean, _ = family.components["vae_encoder"].load().encode(mx.array(reference["rgba"]))
    assert relative(mean, reference["mean"]) < RELATIVE
    statistics = (
        np.array(getattr(family.files.vae_config, f"latents_{name}"))[:, None, None] for name in ("mean", "std")
    )  # type: ignore[attr-defined]
    centre, std = statistics
    loop = mx.array((reference["mean"] - centre) / std)
    assert relative(family.components["vae_decoder"].load().decode(loop), reference["decoded"]) < RELATIVE


def check_schedules(folder: Path) -> None:
    """50 steps at the real sizes, as diffusers' scheduler gives them to the pipeline."""
    family, reference = open_pipeline(folder).family, load_file(folder / "reference.safetensors")
    names = [name for name in reference if name.startswith("sigmas.")]
    for name in names:
        width, height = map(int, name.partition(".")[2].split("x"))
        schedule = family.schedule(Settings(width, height, 50, 4.0, extras={"layers": 4}))
        assert np.abs(np.array(schedule.sigmas) - reference[name]).max() < 1e-6
    assert len(names) == 3


def drawn(folder: Path, way: str, pipeline: Pipeline | None = None) -> Result:
    options = json.loads((folder / "options.json").read_text())
    asked: dict[str, Any] = {"steps": options["steps"], "seed": options["seed"], "guidance": 1.0}
    asked |= {"layers": 1 if way == "one" else options["layers"]}
    if way in ("cfg", "normalized"):
        asked |= {"guidance": options["cfg"], "negative_prompt": options["negative_prompt"]}
        asked |= {"cfg_normalization": True} if way == "normalized" else {}
    picture = folder / ("opaque.png" if way == "opaque" else "alpha.png")
    prompt = " " if way == "described" else options["prompt"]
    with patch.object(captions, "MOST_TOKENS", CAPTION_TOKENS):
        return (pipeline or open_pipeline(folder)).generate(prompt, references=[picture], **asked)


def check_layers(folder: Path, way: str) -> None:
    """At most one level off in any colour or alpha of any layer."""
    theirs = load_file(folder / "reference.safetensors")[f"layers.{way}"].astype(int)
    result = drawn(folder, way)
    ours = np.stack([np.asarray(layer) for layer in result.layers]).astype(int)
    assert ours.shape == theirs.shape and theirs.std() > 4
    assert np.abs(ours - theirs).max() <= 1
    assert result.image.mode == "RGBA" and result.image.size == result.layers[0].size
    if way == "described":
        check_caption(folder, result)


def check_caption(folder: Path, result: Result) -> None:
    """Token for token, and in the record in place of the prompt."""
    (tokens,) = json.loads((folder / "captions.json").read_text())
    caption = qwen_tokenizer(folder / "tokenizer").decode(tokens).strip()
    assert len(tokens) > 3 and result.record["prompt"] == caption
    assert any(note.endswith(caption) for note in result.report.notes)


def test_transformer_equals_diffusers() -> None:
    check_transformer(DATA)


def test_autoencoder_with_alpha_equals_diffusers() -> None:
    check_autoencoder(DATA)


def test_schedules_equal_diffusers() -> None:
    check_schedules(DATA)


@pytest.mark.parametrize("way", WAYS)
def test_layers_equal_diffusers(way: str) -> None:
    check_layers(DATA, way)


def test_the_picture_is_the_layers_laid_over_each_other_the_lowest_first() -> None:
    bottom, top = Image.new("RGBA", (2, 1), (255, 0, 0, 255)), Image.new("RGBA", (2, 1), (0, 0, 255, 0))
    top.putpixel((1, 0), (0, 0, 255, 255))
    over = laid_over([bottom, top])
    assert [over.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0, 255), (0, 0, 255, 255)]
    result = drawn(DATA, "seed")
    assert len(result.layers) == 3 and result.image == laid_over(result.layers)


def test_a_preview_is_one_picture() -> None:
    pipeline, seen = open_pipeline(DATA), []
    for preview in ("fast", "full"):
        pipeline.generate(
            "a map", references=[DATA / "alpha.png"], seed=1, steps=1, layers=2, preview=preview,
            on_step=lambda event: seen.append(event.preview()),
        )  # fmt: skip
    sizes = {picture.size for picture in seen}
    assert len(seen) == 2 and sizes == {(64, 32)} and seen[1].mode == "RGBA"


@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_every_published_tensor_is_bound_and_none_left_over(component: str) -> None:
    """At full size, from the shapes that come with the library; they are the published ones."""
    with shape_only_folder(LAYERED) as folder:
        assert open_family(LAYERED, folder, WeightTransforms()).frames(usual_job(LAYERED, 16).settings) == 5
        config = read_json(folder / component / "config.json")
        shapes = {name: tensor.shape for name, tensor in open_checkpoint(folder / component).items()}
    path = PUBLISHED / "Qwen-Image-Layered" / f"{component}.json"
    if not path.is_file():
        pytest.skip("the published lists do not lie next to this checkout")
    data = json.loads(path.read_text())
    assert shapes == {name: tuple(entry["shape"]) for name, entry in data["tensors"].items()}
    assert all(value is False or config[name] == value for name, value in data["config"].items())


def test_the_added_vector_is_no_linear_layer_to_pack() -> None:
    with shape_only_folder(LAYERED) as folder:
        recipe = read_recipe("q4", "qwen_image")
        family = open_family(LAYERED, folder, recipe.applied_to(WeightTransforms()))
        pieces = [piece for layout in layouts(family, folder, recipe) for piece in layout.pieces]
    assert [piece.packing for piece in pieces if piece.path == ADDED] == [None]
    assert sum(piece.packing is not None for piece in pieces) > 1000


def test_a_folded_checkpoint_draws_the_same_layers(tmp_path: Path) -> None:
    """The added vector is in its tables."""
    made, asked = tmp_path / "made", SMALL | {"steps": 2, "guidance": 3.0}
    quantize(DATA, made, quant=leave_as_stored(tmp_path), fold=2, fold_size=(32, 32))
    for ours, theirs in zip(*(load(place).generate("a map", **asked).layers for place in (made, DATA)), strict=True):
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1


SMALL: dict[str, Any] = {"references": [DATA / "alpha.png"], "seed": 1, "steps": 1, "width": 32, "height": 32}
SMALL |= {"layers": 3, "guidance": 1.0}


def ask(**parameters: Any) -> Job:
    return resolve(LAYERED, 16, "a map", 1, **{"references": [PHOTO]} | parameters)[0]


def test_the_manifests_defaults() -> None:
    """640 x 640 pixels in the picture's proportions, as diffusers rounds them; the model card's steps and guidance."""
    job = ask()
    settings = job.settings
    assert (settings.width, settings.height, settings.steps, settings.cfg) == (768, 512, 50, 4.0)
    assert settings.extras["layers"] == 4 and job.negative is not None and job.negative.text == " "
    record = job.record("cfg")
    assert record["layers"] == 4 and record["references_sha256"] and "image_sha256" not in record
    assert abilities(LAYERED) == ["references", "layers"]


def test_only_a_model_that_takes_a_picture_apart_does_without_words() -> None:
    assert resolve(LAYERED, 16, " ", 1, references=[PHOTO])[0].lacks_words and not ask().lacks_words
    with pytest.raises(RequestError, match="the prompt is empty; say what the picture should show"):
        resolve(manifests()["qwen-image"], 16, " ", 1)


def test_pictures_are_described_with_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed copy has no head, and some folders have no processor; both say so, and draw from a prompt."""
    monkeypatch.setattr(captions, "MOST_TOKENS", 2)
    packed = load(quantize(DATA, tmp_path / "packed", quant="q8"))
    with pytest.raises(MissingFileError, match="no prompt is given, .* packed copies have no head"):
        packed.generate("", **SMALL)
    bare = tmp_path / "bare"
    shutil.copytree(DATA, bare, ignore=shutil.ignore_patterns("processor", "reference.safetensors"))
    pipeline = load(bare)
    with pytest.raises(MissingFileError, match="preprocessor_config.json is not there"):
        pipeline.generate("", **SMALL)
    assert not pipeline.family.components["text_encoder"].loaded
    assert pipeline.generate("a map", **SMALL).layers


def test_a_picture_that_is_described_is_made_again_from_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "MOST_TOKENS", 3)
    pipeline, counts = load(DATA), list[int]()
    pipeline.on_token = counts.append
    first, second = pipeline.generate("", **(SMALL | {"seed": [1, 2]}))
    assert counts == [1, 2, 3] and "upsampled_from" not in first.record
    again = pipeline.generate(first.record["prompt"], **SMALL)
    assert np.array_equal(np.asarray(again.image), np.asarray(first.image)) and second.seed == 2


@pytest.mark.parametrize(
    ("model", "parameters", "words"),
    [
        ("qwen-image", {"layers": 3}, "layers: qwen-image makes one picture; .* qwen-image-layered"),
        ("qwen-image-layered", {"references": [PHOTO], "layers": 0}, "layers 0: give a number from 1 to 20"),
        ("qwen-image-layered", {"references": [PHOTO], "layers": 21}, "layers 21: give a number from 1 to 20"),
        ("qwen-image-layered", {}, "qwen-image-layered changes pictures, and none is given; add references"),
        ("qwen-image-layered", {"references": [PHOTO] * 2}, "takes up to 1"),
        ("qwen-image-layered", {"references": [PHOTO], "image": PHOTO}, "image: .* starts from noise alone"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(model: str, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        resolve(manifests()[model], 16, "a map", 1, **parameters)
    assert "\n" not in str(caught.value)


def test_a_control_network_is_refused() -> None:
    control = [(PHOTO, "qwen-image-controlnet-union")]
    with pytest.raises(RequestError, match="control: qwen-image-layered takes no control pictures"):
        open_pipeline(DATA).jobs("a map", **SMALL | {"control": control})


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    """One flag without the other; colours that the transformer's pictures do not have."""
    folder = shutil.copytree(DATA, tmp_path / "model")
    path = folder / "transformer/config.json"
    config = json.loads(path.read_text())
    with pytest.raises(ConfigError, match=r"are \(False, True, False\), another architecture"):
        QwenImageConfig.read(config | {"use_additional_t_cond": False}, path)
    with pytest.raises(ConfigError, match="'use_layer3d_rope' is True, but the folder is opened as qwen-image:"):
        QwenImage.open(folder, manifests()["qwen-image"], WeightTransforms())
    path = folder / "vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"input_channels": 3}))
    with pytest.raises(ConfigError, match="field 'input_channels' is 3"):
        open_pipeline(folder)


def test_a_plan_counts_every_frame_and_the_picture_that_is_taken_apart() -> None:
    pipeline = open_pipeline(DATA)
    few, many = (
        plan(pipeline.family, job.settings, False, job.prompt)
        for job in (usual_job(pipeline.model.manifest, 16, width=32, height=32, layers=layers) for layers in (1, 5))
    )
    linear = (
        2
        * 4
        * sum(
            rows * columns
            for path, (rows, columns), _ in pipeline.family.transformer.linears()
            if path.startswith("transformer_blocks") and ".img_mlp." in path
        )
    )
    grew = (many.step_flops - few.step_flops) / 2  # a branch
    assert grew > 4 * linear  # four frames of four tokens


@pytest.mark.parametrize("kind", ["layered", "image"])
def test_comfyuis_files_give_what_the_folder_gives(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoencoder with alpha goes with layers and the one without with all else, wherever both lie."""
    stored, models = DATA.with_name(kind), tmp_path / "models"
    manifest = "qwen-image-layered" if kind == "layered" else "qwen-image"
    cache_tokenizers(tmp_path / "hub", stored, manifest, monkeypatch)
    for component, place in {"transformer": "diffusion_models/a", "text_encoder": "text_encoders/a"}.items():
        path = models / f"{place}.safetensors"
        save_with_config(path, read_tensors(stored / component), stored / component / "config.json")
    tensors, config = read_tensors(stored / "vae"), json.loads((stored / "vae/config.json").read_text())
    for colours in (3, 4):
        path = tmp_path / "vae.json"
        path.write_text(json.dumps(config | {"input_channels": colours}))
        cut = {name: with_colours(name, value, colours) for name, value in tensors.items()}
        save_with_config(models / f"vae/{colours}.safetensors", cut, path)
    options: dict[str, Any] = {"seed": 1, "steps": 1, "width": 32, "height": 32, "guidance": 1.0}
    options |= SMALL if kind == "layered" else {}
    places = (models / "diffusion_models/a.safetensors", stored)
    ours, theirs = (load(place).generate("a map", **options) for place in places)
    assert ours.record["manifest"] == manifest and np.array_equal(np.asarray(ours.image), np.asarray(theirs.image))


def with_colours(name: str, value: np.ndarray, colours: int) -> np.ndarray:
    """An autoencoder's tensor with so many colours in the picture, by cutting or repeating."""
    axis = 1 if name == "encoder.conv_in.weight" else 0
    return np.take(value, np.arange(colours) % value.shape[axis], axis) if name.startswith(ENDS) else value


ENDS = ("encoder.conv_in.weight", "decoder.conv_out.")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_the_command_line_writes_a_file_a_layer_and_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "out.png", str(DATA / "alpha.png")
    asked = ["a map", "--model", str(DATA), "--references", picture, "--size", "32", "--steps", "1", "--seed", "1"]
    assert main([*asked, "--layers", "2", "-o", str(out), "--quiet"]) == 0
    written = [out, tmp_path / "out.layer1.png", tmp_path / "out.layer2.png"]
    assert capsys.readouterr().out.split() == list(map(str, written))
    assert sorted(tmp_path.iterdir()) == sorted(written)
    first, *layers = map(pixels, written)
    assert (
        np.array_equal(first, np.asarray(laid_over(list(map(Image.fromarray, layers)))))
        and read_metadata(written[1])["layers"] == 2
    )
    again = ["--from", str(out), "--references", picture, "--model", str(DATA), "-o", str(tmp_path / "again.png")]
    assert main([*again, "--quiet"]) == 0
    for path in written:
        assert np.array_equal(pixels(path), pixels(path.with_name(path.name.replace("out", "again"))))
    assert main([*asked, "-o", str(tmp_path / "out.jpg"), "--quiet"]) == 2
    assert "JPEG has no alpha" in capsys.readouterr().err
