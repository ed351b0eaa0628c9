"""FLUX.3's files: every published tensor is bound, the original layout by name, and folders are recognized."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.errors import ConfigError, MismatchError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.flux3.config import Flux3Config
from mlx_imagegen.families.flux3.keys import LAYOUT, NAMES, TRAINING
from mlx_imagegen.families.flux3.modulation import Flux3Modulators
from mlx_imagegen.families.flux3.transformer import Flux3Transformer
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.checkpoint import Checkpoint, Tensor
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.modules import layers, own_parameters
from mlx_imagegen.loading.weights import WeightTransforms, open_weights
from tests.families.flux3.test_flux3 import DATA
from tests.references.names import Shapes, expand

NAMES_FILE = Path(__file__).parents[2] / "data/names/FLUX.3-klein/bfl_single_file.json"
WHERE = Path("config.json")
ASKED: dict[str, Any] = {"seed": 1, "steps": 2, "width": 32, "height": 32}


def klein(flow_map: bool = True) -> Flux3Config:
    return Flux3Config(
        attention_head_dim=128,
        axes_dims_rope=(32, 32, 32, 32),
        cond_in_channels=128,
        flow_map=flow_map,
        in_channels=128,
        joint_attention_dim=20480,
        num_attention_heads=24,
        num_layers=5,
        num_single_layers=28,
        rope_theta=10000.0,
    )


def bind(shapes: Shapes, config: Flux3Config) -> None:
    """Refuses a missing, unexpected or misshapen tensor."""
    tensors = {name: Tensor(WHERE, name, "BF16", shape, 0, 0) for name, shape in shapes.items()}
    trees = [Flux3Transformer(config), Flux3Modulators(config)]
    open_weights("x", Checkpoint(tensors, [], WHERE), trees, rename=LAYOUT.rename, unused=TRAINING)


@pytest.mark.parametrize(("model", "billions"), [("flux3-klein", 5.5487), ("flux3-klein-base", 5.5385)])
def test_the_published_models_open(model: str, billions: float) -> None:
    """Every name and shape of every part is bound, with none left over; the vision tower and 4 layers are not read."""
    with shape_only_folder(manifests()[model]) as folder:
        family: Any = open_family(manifests()[model], folder, WeightTransforms())
        count = sum(tensor.nbytes for tensor in family.transformer.weights.checkpoint.values()) / 2
        assert count / 1e9 == pytest.approx(billions, abs=1e-4) and family.size_multiple == 16
        assert family.files.text_layers == (4, 8, 12, 16, 20, 24, 28, 32)
        held = dict(layers(family.components["text_encoder"].empty()))
        assert "layers.31.mlp.up_proj" in held and "layers.32.mlp.up_proj" not in held and "norm" not in held


def test_the_original_file_is_bound() -> None:
    """Also with the heads that the training had, and the undistilled one without a target's embedder."""
    _, shapes = expand(NAMES_FILE)
    bind(shapes | {"repa_projectors.0.weight": (8, 8)}, klein())
    base = {name: shape for name, shape in shapes.items() if not name.startswith("ref_time_in")}
    bind(base, klein(flow_map=False))
    with pytest.raises(MismatchError, match="missing: target_timestep_embedder"):
        bind(base, klein())


def test_the_original_layout_gives_the_same_picture(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "klein", tmp_path / "model")
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(weights), {}
    for original, name in NAMES.items():
        for index in range(2) if "{i}" in original else (0,):
            value = mx.array(ours.pop(f"{name.format(i=index)}.weight"))
            if original in LAYOUT.swapped:
                value = mx.concatenate(mx.split(value, 2)[::-1])
            ending = "scale" if original.endswith("_norm") else "weight"
            theirs[f"{original.format(i=index)}.{ending}"] = value.__array__()
    assert not ours
    save_file(theirs, weights)
    pictures = [load(each).generate("a fox", **ASKED).image for each in (DATA / "klein", folder)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


@pytest.mark.parametrize(("flow_map", "name"), [(True, "flux3-klein"), (False, "flux3-klein-base")])
def test_folders_are_recognized(flow_map: bool, name: str, tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    data = {"_class_name": "Flux3Transformer2DModel", "flow_map": flow_map}
    (tmp_path / "transformer/config.json").write_text(json.dumps(data))
    assert recognize(tmp_path).name == name


@pytest.mark.parametrize("field", ["joint_attention_dim", "in_channels", "cond_in_channels"])
def test_parts_of_different_models_are_refused(field: str, tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "klein", tmp_path / "model")
    path = folder / "transformer/config.json"
    path.write_text(json.dumps(read_json(path) | {field: 12}))
    with pytest.raises(ConfigError, match=f"field '{field}' is 12, but the .* different models"):
        load(folder)


def test_modulation_is_not_in_the_loop() -> None:
    trees = [Flux3Transformer(klein()), Flux3Modulators(klein())]
    loop, before = (sum(v.size for _, layer in layers(tree) for v in own_parameters(layer).values()) for tree in trees)
    assert loop + before == 5_548_681_984 and 0.03 < before / (loop + before) < 0.05
