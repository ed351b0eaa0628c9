"""What mflux writes of a model: mflux's own modules, quantizer and saver.

    python tests/references/mflux_saved.py names FILE
    python tests/references/mflux_saved.py save FAMILY FOLDER OUT [BITS]

`names`: every tensor of the published models as saved at 4 bits, a shape each; nothing is computed. `save`: a small
model's diffusers FOLDER, as mflux loads and saves it. Needs mflux alone (benchmarks/peers/setup.py).
"""

import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mflux.models.common.config import ModelConfig
from mflux.models.common.weights.loading.weight_applier import WeightApplier
from mflux.models.common.weights.loading.weight_loader import WeightLoader
from mflux.models.common.weights.saving.model_saver import ModelSaver
from mlx.utils import tree_flatten

SHAPES = Path(__file__).parents[2] / "weights/tensor_shapes"
GROUP = 64  # mflux's, of every family here
Config = Mapping[str, Any]
Make = Callable[[Mapping[str, Any]], nn.Module]  # from a config.json; of the published size where it is empty


def of(place: str) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(f"mflux.models.{module}"), name)


def taking(place: str, *names: str) -> Make:
    """A class, with these fields of a config.json where there is one."""

    def make(config: Config) -> nn.Module:
        flat = {**config, **config.get("text_config", {})}
        module: nn.Module = of(place)(**{name: flat[name] for name in names if name in flat})
        return module

    return make


QWEN3 = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim"
Z_IMAGE = "dim n_layers n_refiner_layers n_heads cap_feat_dim in_channels".split()
BOTH = "in_channels num_layers num_single_layers attention_head_dim num_attention_heads joint_attention_dim mlp_ratio"
FLUX2 = [*BOTH.split(), "axes_dims_rope", "timestep_guidance_channels"]
FLUX3 = [*BOTH.split(), "axes_dims_rope", "cond_in_channels", "timestep_channels", "flow_map"]
ENCODER = taking("flux2.model.flux2_text_encoder.qwen3_text_encoder.Qwen3TextEncoder", *QWEN3.split())
FLUX2_VAE = taking("flux2.model.flux2_vae.vae.Flux2VAE")


def flux1(config: Config) -> nn.Module:
    kind = ModelConfig.dev() if config.get("guidance_embeds", True) else ModelConfig.schnell()
    counts = config.get("num_layers", 19), config.get("num_single_layers", 38)
    module: nn.Module = of("flux.model.flux_transformer.transformer.Transformer")(kind, *counts)
    return module


def t5(config: Config) -> nn.Module:
    """mflux has as many blocks as are published, and gives each the first one's table."""
    module = of("flux.model.flux_text_encoder.t5_encoder.t5_encoder.T5Encoder")()
    del module.t5_blocks[config.get("num_layers", len(module.t5_blocks)) :]
    return module  # type: ignore[no-any-return]


def seeing(config: Config) -> nn.Module:
    """Qwen-Image-Edit's text encoder, which has the vision tower."""
    module: nn.Module = of("qwen.model.qwen_text_encoder.qwen_text_encoder.QwenTextEncoder")()
    module.encoder.visual = of("qwen.model.qwen_text_encoder.qwen_vision_transformer.VisionTransformer")()
    return module


def configured(place: str, published: str) -> Make:
    """A class that takes a config.json whole."""

    def make(config: Config) -> nn.Module:
        module: nn.Module = of(place)(
            config or json.loads((SHAPES / "qwen-image-2.1.json").read_text())["files"][published]
        )
        return module

    return make


# Family -> what is known of its files, and by component how a module of it is made.
FAMILIES: dict[str, tuple[str, dict[str, Make]]] = {
    "flux1": (
        "flux.weights.flux_weight_definition.FluxWeightDefinition",
        {
            "transformer": flux1,
            "vae": taking("flux.model.flux_vae.vae.VAE"),
            "t5_encoder": t5,
            "clip_encoder": taking("flux.model.flux_text_encoder.clip_encoder.clip_encoder.CLIPEncoder"),
        },
    ),
    "qwen_image": (
        "qwen.weights.qwen_weight_definition.QwenWeightDefinition",
        {
            "transformer": taking("qwen.model.qwen_transformer.qwen_transformer.QwenTransformer", "num_layers"),
            "vae": taking("qwen.model.qwen_vae.qwen_vae.QwenVAE"),
            "text_encoder": taking("qwen.model.qwen_text_encoder.qwen_text_encoder.QwenTextEncoder"),
        },
    ),
    "qwen_image_edit": (
        "qwen.weights.qwen_weight_definition.QwenWeightDefinition",
        {
            "transformer": taking("qwen.model.qwen_transformer.qwen_transformer.QwenTransformer", "num_layers"),
            "vae": taking("qwen.model.qwen_vae.qwen_vae.QwenVAE"),
            "text_encoder": seeing,
        },
    ),
    "z_image": (
        "z_image.weights.z_image_weight_definition.ZImageWeightDefinition",
        {
            "transformer": taking("z_image.model.z_image_transformer.transformer.ZImageTransformer", *Z_IMAGE),
            "vae": taking("z_image.model.z_image_vae.vae.VAE"),
            "text_encoder": taking("z_image.model.z_image_text_encoder.text_encoder.TextEncoder", *QWEN3.split()),
        },
    ),
    "flux2": (
        "flux2.weights.flux2_weight_definition.Flux2KleinWeightDefinition",
        {
            "transformer": taking("flux2.model.flux2_transformer.transformer.Flux2Transformer", *FLUX2),
            "vae": FLUX2_VAE,
            "text_encoder": ENCODER,
        },
    ),
    "flux3": (
        "flux3.weights.flux3_weight_definition.Flux3KleinWeightDefinition",
        {
            "transformer": taking("flux3.model.flux3_transformer.flux3_transformer.Flux3Transformer", *FLUX3),
            "vae": FLUX2_VAE,
            "text_encoder": lambda config: ENCODER(config or {"num_hidden_layers": 32}),
        },
    ),
    "qwen_image_21": (
        "qwen21.weights.qwen_image21_weight_definition.QwenImage21WeightDefinition",
        {
            "transformer": configured(
                "qwen21.model.qwen21_transformer.qwen_image21_transformer.QwenImage21Transformer",
                "transformer/config.json",
            ),
            "vae": configured("qwen21.model.qwen21_vae.vae.QwenImage21VAE", "vae/config.json"),
            "text_encoder": configured(
                "qwen21.model.qwen21_text_encoder.text_encoder.QwenImage21TextEncoder", "text_encoder/config.json"
            ),
        },
    ),
}


def names() -> dict[str, dict[str, dict[str, list[int]]]]:
    """FAMILY/COMPONENT'S FOLDER -> bits, 0 for numbers -> name, blocks' numbers as runs -> the numbers' shape."""
    out = {}
    for family, (definition, modules) in FAMILIES.items():
        known = {each.name: each for each in of(definition).get_components()}
        for component, make in modules.items():
            module = make({})
            if not known[component].skip_quantization:
                quantize(module, of(definition), 4, GROUP)
            out[f"{family}/{known[component].hf_subdir}"] = by_bits(module)
    return out


def by_bits(module: nn.Module) -> dict[str, dict[str, list[int]]]:
    """A packed weight's scales and biases follow from it."""
    tensors = dict(tree_flatten(module.parameters()))
    out: dict[str, dict[str, list[int]]] = {}
    for name, value in tensors.items():
        path, _, kind = name.rpartition(".")
        scales = tensors.get(f"{path}.scales")
        if scales is None or kind == "bias":
            out.setdefault("0", {})[name] = list(value.shape)
        elif kind == "weight":
            columns = scales.shape[-1] * GROUP
            out.setdefault(str(value.shape[-1] * 32 // columns), {})[name] = [*value.shape[:-1], columns]
    return {bits: in_runs(shapes) for bits, shapes in out.items()}


def in_runs(shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """layers.{0-35}.norm for 36 names, where all have one shape and none is missing."""
    runs: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, shape in shapes.items():
        number = re.search(r"\.(\d+)\.", name)
        pattern = f"{name[: number.start(1)]}{{}}{name[number.end(1) :]}" if number else name
        runs.setdefault((pattern, tuple(shape)), []).append(number[1] if number else "")
    out = {}
    for (pattern, shape), numbers in runs.items():
        is_run = len(numbers) > 1 and numbers == [str(index) for index in range(len(numbers))]
        for number in [f"{{0-{len(numbers) - 1}}}"] if is_run else numbers:
            out[pattern.format(number)] = list(shape)
    return out


def quantize(module: nn.Module, definition: Any, bits: int, group_size: int) -> None:
    """As mflux does, but that a small model's rows that are no whole groups stay as they are."""
    chosen = WeightApplier._predicate_with_bits(definition.quantization_predicate, bits)

    def is_packed(path: str, layer: nn.Module) -> Any:
        return hasattr(layer, "weight") and layer.weight.shape[-1] % group_size == 0 and chosen(path, layer)

    nn.quantize(module, group_size=group_size, bits=bits, class_predicate=is_packed)


def shorten(module: Any, weights: Any) -> None:
    """Leaves as many layers in a module as there are weights for: mflux has published counts in its code."""
    if isinstance(weights, list):
        del module[len(weights) :]
        pairs = list(zip(module, weights, strict=False))
    else:
        pairs = [(module[name], inner) for name, inner in weights.items() if name in module]
    for child, inner in pairs:
        if isinstance(inner, dict | list) and isinstance(child, nn.Module | dict | list):
            shorten(child, inner)


def load(family: str, definition: Any, modules: Mapping[str, nn.Module], folder: Path) -> None:
    if family == "qwen_image_21":  # has a loader of its own, that renames
        initializer = of("qwen21.qwen21_initializer.Qwen21Initializer")
        initializer.load_components(SimpleNamespace(**modules), folder, definition, None, validate=True)
        return
    weights = WeightLoader.load(definition, model_path=str(folder))
    for name, module in modules.items():
        shorten(module, weights.components[name])
    WeightApplier.apply_and_quantize(weights=weights, models=modules, quantize_arg=None, weight_definition=definition)


def save(family: str, folder: Path, out: Path, bits: int | None) -> None:
    ModelConfig.precision = mx.float32
    definition, makers = of(FAMILIES[family][0]), FAMILIES[family][1]
    known = {each.name: each for each in definition.get_components()}
    modules = {
        name: make(json.loads((folder / known[name].hf_subdir / "config.json").read_text()))
        for name, make in makers.items()
    }
    load(family, definition, modules, folder)
    for name, module in modules.items():
        if bits and not known[name].skip_quantization:
            quantize(module, definition, bits, 32)
    model = SimpleNamespace(**{known[name].model_attr or name: module for name, module in modules.items()})
    ModelSaver.save_model(model, bits, str(out), definition)


def main(job: str, *arguments: str) -> None:
    mx.set_default_device(mx.cpu)
    if job == "names":
        lines = [f"{json.dumps(table)}: {json.dumps(shapes)}" for table, shapes in names().items()]
        Path(arguments[0]).write_text("{\n" + ",\n".join(lines) + "\n}\n")
    else:
        family, folder, out, *bits = arguments
        save(family, Path(folder), Path(out), int(bits[0]) if bits else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
