"""FLUX.2's files: every published tensor is bound, other layouts by name, and folders are recognized."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.autoencoders.flux2 import UNUSED, Decoder, Encoder, Flux2VaeConfig
from mlx_imagegen.autoencoders.layouts import from_ldm
from mlx_imagegen.errors import ConfigError, MismatchError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.flux2.config import Flux2Config
from mlx_imagegen.families.flux2.keys import LAYOUT, ORIGINAL
from mlx_imagegen.families.flux2.modulation import Flux2Modulators
from mlx_imagegen.families.flux2.transformer import Flux2Transformer
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.checkpoint import Checkpoint, Tensor
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.modules import layers, own_parameters
from mlx_imagegen.loading.names import Rename
from mlx_imagegen.loading.weights import WeightTransforms, open_weights
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import usual_job
from tests.families.flux2.test_flux2 import DATA
from tests.references.names import Shapes, expand

NAMES = Path(__file__).parents[2] / "data/names"
KLEIN = NAMES / "FLUX.2-klein-4B"
MODELS = sorted(name for name, manifest in manifests().items() if manifest.family == "flux2")
BILLIONS = {"flux2-klein-4b": 3.8755, "flux2-klein-9b": 9.0786, "flux2-dev": 32.2233}
WHERE = Path("config.json")


def bind(shapes: Shapes, trees: list[nn.Module], rename: Rename, unused: tuple[str, ...] = ()) -> None:
    """Refuses a missing, unexpected or misshapen tensor."""
    kinds = {name: "I64" if name in unused else "BF16" for name in shapes}
    tensors = {name: Tensor(WHERE, name, kinds[name], shape, 0, 0) for name, shape in shapes.items()}
    open_weights("x", Checkpoint(tensors, [], WHERE), trees, rename=rename, unused=unused)


@pytest.mark.parametrize("model", MODELS)
def test_the_published_models_open(model: str) -> None:
    """Every name and shape of every part is bound, with none left over."""
    manifest = manifests()[model]
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, WeightTransforms())
        transformer = family.transformer.weights.checkpoint
        assert sum(tensor.nbytes for tensor in transformer.values()) / 2e9 == pytest.approx(
            BILLIONS[manifest.tensor_shapes or ""], abs=1e-4
        )
        assert family.size_multiple == 16


def klein(heads: int = 24, double: int = 5, single: int = 20, text: int = 7680, guided: bool = False) -> Flux2Config:
    return Flux2Config(
        attention_head_dim=128,
        axes_dims_rope=(32, 32, 32, 32),
        guidance_embeds=guided,
        in_channels=128,
        joint_attention_dim=text,
        num_attention_heads=heads,
        num_layers=double,
        num_single_layers=single,
        rope_theta=2000.0,
    )


@pytest.mark.parametrize(
    ("model", "config"),
    [("FLUX.2-klein-4B", klein()), ("FLUX.2-dev", klein(48, 8, 48, 15360, guided=True))],
)
def test_the_original_file_is_bound(model: str, config: Flux2Config) -> None:
    _, shapes = expand(NAMES / model / "bfl_single_file.json")
    bind(shapes, [Flux2Transformer(config), Flux2Modulators(config)], LAYOUT.rename)
    used = {LAYOUT.targets(name.rpartition(".")[0])[0].name for name in shapes}
    assert len(used) == len(shapes) and any("guidance_embedder" in name for name in used) == config.guidance_embeds


def test_both_layouts_of_the_autoencoder_are_bound() -> None:
    config, thin = expand(KLEIN / "small_decoder.json")
    _, original = expand(KLEIN / "bfl_single_file_ae.json")
    full = Flux2VaeConfig.read({**config, "decoder_block_out_channels": None}, WHERE)
    small = Flux2VaeConfig.read(config, WHERE)
    assert small.decoder_widths == (96, 192, 384, 384)
    bind(original, [Encoder(full), Decoder(full)], from_ldm, UNUSED)
    bind(thin, [Encoder(small), Decoder(small)], from_ldm, UNUSED)
    with pytest.raises(MismatchError, match="misshapen"):
        bind(thin, [Encoder(full), Decoder(full)], from_ldm, UNUSED)


def test_states_are_taken_after_three_quarters_of_the_layers() -> None:
    for model, chosen in (("flux2-klein-4b", (9, 18, 27)), ("flux2-dev", (10, 20, 30))):
        with shape_only_folder(manifests()[model]) as folder:
            family: Any = open_family(manifests()[model], folder, WeightTransforms())
            assert family.files.text_layers == chosen
            held = dict(layers(family.components["text_encoder"].empty()))
            assert f"layers.{chosen[-1] - 1}.mlp.up_proj" in held and f"layers.{chosen[-1]}.mlp.up_proj" not in held
            assert "norm" not in held


def test_the_original_layout_gives_the_same_picture(tmp_path: Path) -> None:
    """Fused linears, swapped halves and the autoencoder's other names."""
    folder = shutil.copytree(DATA / "klein", tmp_path / "model")
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(weights), {}
    for pattern, parts in ORIGINAL.items():
        for index in range(2) if "{i}" in pattern else (0,):
            names = [f"{name.format(i=index)}.weight" for name, _ in parts]
            if all(name in ours for name in names):
                rows = mx.concatenate([mx.array(ours[name]) for name in names])
                if pattern in LAYOUT.swapped:
                    rows = mx.concatenate(mx.split(rows, 2)[::-1])
                ending = "scale" if pattern.endswith("_norm") else "weight"
                theirs[f"{pattern.format(i=index)}.{ending}"] = rows.__array__()
    assert sum(value.size for value in theirs.values()) == sum(value.size for value in ours.values())
    save_file(theirs, weights)
    asked: dict[str, Any] = {"seed": 1, "steps": 2, "guidance": 1.0, "width": 32, "height": 32}
    asked["max_sequence_length"] = 32
    pictures = [load(each).generate("a fox", **asked).image for each in (DATA / "klein", folder)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def folder_of(path: Path, index: dict[str, Any], transformer: dict[str, Any]) -> Path:
    (path / "transformer").mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "transformer/config.json").write_text(json.dumps({"_class_name": "Flux2Transformer2DModel", **transformer}))
    return path


@pytest.mark.parametrize(
    ("index", "transformer", "name"),
    [
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, {"num_attention_heads": 24}, "flux2-klein-4b"),
        ({"_class_name": "Flux2KleinPipeline"}, {"num_attention_heads": 24}, "flux2-klein-base-4b"),
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, {"num_attention_heads": 32}, "flux2-klein-9b"),
        ({"_class_name": "Flux2KleinPipeline"}, {"num_attention_heads": 32}, "flux2-klein-base-9b"),
        ({"_class_name": "Flux2KleinKVPipeline"}, {"num_attention_heads": 32}, "flux2-klein-9b-kv"),
        ({"_class_name": "Flux2Pipeline"}, {"num_attention_heads": 48, "guidance_embeds": True}, "flux2-dev"),
        ({}, {"num_attention_heads": 24}, "flux2-klein-4b"),
        ({}, {"num_attention_heads": {}}, "flux2-klein-4b"),  # reading the config refuses it
        ({}, {"num_attention_heads": 48, "guidance_embeds": True}, "flux2-dev"),
    ],
)
def test_folders_are_recognized(index: dict[str, Any], transformer: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert recognize(folder_of(tmp_path / "model", index, transformer)).name == name


@pytest.mark.parametrize("field", ["joint_attention_dim", "in_channels"])
def test_parts_of_different_models_are_refused(field: str, tmp_path: Path) -> None:
    """klein 9B with 4B's text encoder, say."""
    folder = shutil.copytree(DATA / "klein", tmp_path / "model")
    path = folder / "transformer/config.json"
    path.write_text(json.dumps(read_json(path) | {field: 12}))
    with pytest.raises(ConfigError, match=f"field '{field}' is 12, but the .* different models"):
        load(folder)


@pytest.mark.parametrize(("field", "value"), [("axes_dims_rope", [4, 4, 8]), ("patch_size", 2), ("unheard_of", 1)])
def test_other_architectures_are_refused_by_field(field: str, value: Any) -> None:
    config = read_json(DATA / "klein/transformer/config.json")
    with pytest.raises(ConfigError, match=f"'{field}'"):
        Flux2Config.read(config | {field: value}, WHERE)


def test_modulation_is_not_in_the_loop() -> None:
    trees: list[nn.Module] = [Flux2Transformer(klein()), Flux2Modulators(klein())]
    loop, before = (sum(v.size for _, layer in layers(tree) for v in own_parameters(layer).values()) for tree in trees)
    assert loop + before == 3_875_544_576 and 0.04 < before / (loop + before) < 0.05


@pytest.mark.parametrize(
    ("model", "quant", "gigabytes"),
    [
        ("flux2-klein-4b", "q4", 4.7),
        ("flux2-klein-4b", "q6", 5.4),
        ("flux2-klein-4b", "q8", 6.4),
        ("flux2-klein-9b", "q4", 8.3),
        ("flux2-dev", "q4", 23.0),
    ],
)
def test_peaks_on_a_mac(model: str, quant: str, gigabytes: float) -> None:
    from mlx_imagegen.packing.recipes import read_recipe

    with shape_only_folder(manifests()[model]) as folder:
        family = open_family(manifests()[model], folder, WeightTransforms())
        job = usual_job(manifests()[model], family.size_multiple)
        made = plan(family, job.settings, True, job.prompt, recipe=read_recipe(quant, "flux2"))
    assert round(made.peak_bytes / 1e9, 1) == gigabytes
