"""What every recorded HiDream-O1 run is held to, whoever made it: tests/references/hidream.py or upstream's own
code."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image
from safetensors import safe_open

from mlx_imagegen.families.base import Prompt, Settings
from mlx_imagegen.families.hidream_o1.denoiser import Condition
from mlx_imagegen.families.hidream_o1.family import HiDreamBranch, HiDreamO1
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.layers.patches import unpatchified
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.pipeline import Pipeline, load
from mlx_imagegen.sampling import timesteps_schedule
from mlx_imagegen.text.qwen import mrope

X_PRED, PREFIX_PATH, LOOP = 5e-5, 1e-5, 1e-4
TIMESTEPS = (999.0, 515.0, 8.0)


def largest(a: mx.array, b: mx.array) -> float:
    assert a.shape == b.shape
    return float(mx.max(mx.abs(a - b)))


def opened(folder: Path) -> HiDreamO1:
    return HiDreamO1.open(folder, recognize(folder), WeightTransforms())


def settings(width: int, height: int, **extras: Any) -> Settings:
    return Settings(width, height, steps=3, guidance=0.0, extras={"max_sequence_length": 4096} | extras)


def check_forward(
    folder: Path,
    want: Mapping[str, mx.array],
    prompt: str,
    size: tuple[int, int],
    references: Sequence[Image.Image] = (),
) -> None:
    """Ids, positions, rope, embeddings, prefix, every layer, and x_pred by both paths at three timesteps."""
    family = opened(folder)
    asked = settings(*size)
    branch, _ = family.encode(Prompt(prompt, tuple(references)), asked)
    assert (branch.positions == np.array(want["position_ids"])[:, 0]).all()
    cos, sin = mrope(branch.positions, family.files.config.text)
    if "rope_cos" in want:  # float32 angles of thousands of radians: as far as the reference's own rounding allows
        assert largest(cos, want["rope_cos"][0, :, : cos.shape[1]]) < 2e-5
        assert largest(sin, want["rope_sin"][0, :, : sin.shape[1]]) < 2e-5
    (ready,) = family.denoiser([branch], timesteps_schedule(TIMESTEPS), asked).branches
    for layer, (k, v) in enumerate(ready.prefix):
        if f"prefix_k{layer}" in want:
            assert largest(k, want[f"prefix_k{layer}"]) < X_PRED and largest(v, want[f"prefix_v{layer}"]) < X_PRED
    transformer = family.components["transformer"].load()
    for index, timestep in enumerate(TIMESTEPS):
        assert abs(1 - timestep / 1000 - float(want[f"t{index}.timestep"][0])) < 1e-7
        z = want[f"t{index}.z"]
        picture = transformer(z, timestep, ready.rope, ready.prefix, ready.references)
        assert largest(picture, want[f"t{index}.x_pred"]) < X_PRED
        hidden, whole = masked(family, branch, ready, z, timestep)
        assert largest(picture, whole) < PREFIX_PATH
        if index == 0:
            for layer, state in enumerate(hidden):
                assert largest(state, want[f"t0.layer{layer}"]) < X_PRED, f"layer {layer}"


def masked(
    family: HiDreamO1, branch: HiDreamBranch, ready: Condition, z: mx.array, timestep: float
) -> tuple[list[mx.array], mx.array]:
    """The whole sequence at once under a dense mask, as upstream runs it: every layer's output with
    its deepstack features, and x_pred."""
    transformer = family.components["transformer"].load()
    parts = [branch.txt, transformer.time(timestep), transformer.embed(z)]
    x = mx.concatenate([*parts, *([] if ready.references is None else [ready.references])], axis=1)
    length, text = x.shape[1], branch.txt.shape[1]
    mask = mx.tri(length, dtype=mx.bool_) | (mx.arange(length) >= text)[:, None]
    rope = mrope(branch.positions, family.files.config.text)
    states = []
    for index, layer in enumerate(transformer.language_model.layers):
        x, _ = layer(x, rope, mask, None)
        if index < len(branch.deepstack):
            x = mx.concatenate([x[:, :text] + branch.deepstack[index], x[:, text:]], axis=1)
        states.append(x)
    x = transformer.language_model.norm(x)
    return states, transformer.final_layer2["linear"](x[:, text + 1 : text + 1 + z.shape[1]])


def check_loop(folder: Path, file: Path, references: Sequence[Image.Image] = ()) -> None:
    """A recorded run again, by generate()'s parameters: every step's x and x_pred, then the picture."""
    want = mx.load(str(file))
    prompt, parameters = recorded_parameters(file, want)
    if references:
        parameters["references"] = references
    pipeline = load(folder, resident=True)
    check_steps(pipeline, want, prompt, parameters)
    result = pipeline.generate(prompt, **parameters)
    levels = np.asarray(result.image).astype(int) - np.array(want["image_uint8"]).astype(int)
    assert np.abs(levels).max() <= 1


def check_steps(pipeline: Pipeline, want: Mapping[str, mx.array], prompt: str, parameters: dict[str, Any]) -> None:
    family: Any = pipeline.family
    (job,) = pipeline.jobs(prompt, **parameters)
    schedule = family.schedule(job.settings)
    prompts = [job.prompt] if job.negative is None else [job.prompt, job.negative]
    branches = [family.encode(one, job.settings)[0] for one in prompts]
    ready = family.denoiser(branches, schedule, job.settings).branches
    draws = None if job.step_noise is None else [mx.array(noise) for noise in job.step_noise]
    solver = family.solver(schedule, job.seed, job.settings, draws)
    transformer = family.components["transformer"].load()
    x = family.start(family.pack(mx.array(job.noise)), job.settings)
    assert largest(x, want["z0"]) < 1e-6
    for index, timestep in enumerate(schedule.timesteps):
        pictures = [transformer(x, timestep, one.rope, one.prefix, one.references) for one in ready]
        for name, picture in zip(("cond", "uncond"), pictures, strict=False):
            assert largest(picture, want[f"step{index}.{name}.x_pred"]) < X_PRED, f"step {index}, {name}"
        directions = [(x - picture) / max(timestep / 1000, 0.001) for picture in pictures]
        v = directions[0] if len(pictures) == 1 else directions[1] + job.settings.cfg * (directions[0] - directions[1])
        x = solver(x, v, index)
        assert largest(x, want[f"step{index}.z"]) < LOOP, f"step {index}"


def recorded_parameters(file: Path, want: Mapping[str, mx.array]) -> tuple[str, dict[str, Any]]:
    """What generate() has to be given; upstream's recordings name it in their own words."""
    with safe_open(file, "np") as opened_file:
        metadata = opened_file.metadata()
    if "settings" in metadata:
        parameters = json.loads(metadata["settings"])
        prompt = parameters.pop("prompt")
    else:
        prompt = metadata.get("prompt") or json.loads((file.parent / "prompt.json").read_text())["prompt"]
        parameters = _upstreams(metadata)
    parameters |= {"noise": np.array(want["noise_unit"]), "seed": 0}
    if parameters["sampler"] == "flash":
        grid, patch = grid_of(want["noise_unit"], want["z0"])
        draws = [name for name in want if name.endswith(".noise")]
        parameters["step_noise"] = [np.array(unpatchified(want[name], grid, patch)) for name in sorted(draws)]
    else:
        parameters.pop("noise_clip", None)
    return prompt, parameters


def grid_of(noise: mx.array, z: mx.array) -> tuple[tuple[int, int], int]:
    patch = round((z.shape[-1] / 3) ** 0.5)
    return (noise.shape[2] // patch, noise.shape[3] // patch), patch


def _upstreams(metadata: dict[str, str]) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "sampler": {"default": "unipc"}.get(metadata["scheduler"], metadata["scheduler"]),
        "width": int(metadata["width"]),
        "height": int(metadata["height"]),
        "guidance": float(metadata["guidance_scale"]),
        "noise_scale": (float(metadata["noise_scale_start"]), float(metadata["noise_scale_end"])),
        "noise_clip": float(metadata["noise_clip_std"]),
    }
    if metadata["timesteps_list"] == "None":
        parameters |= {"steps": int(metadata["num_inference_steps"]), "shift": float(metadata["shift"])}
    else:
        parameters["timesteps"] = json.loads(metadata["timesteps_list"])
    if metadata.get("layout_bboxes"):
        parameters["layout"] = json.loads(metadata["layout_bboxes"])
    return parameters
