"""Z-Image against diffusers: text states, blocks, transformer, schedules and whole pictures, on stored draws
(tests/references/z_image.py).

The check functions are the same that tests/parity/test_z_image.py runs on fresh draws.
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_imagegen import load
from mlx_imagegen.families.base import Prompt, Settings
from mlx_imagegen.families.z_image.denoiser import ZImageDenoiser
from mlx_imagegen.families.z_image.family import ZImage
from mlx_imagegen.families.z_image.modulation import steps, tabulate
from mlx_imagegen.families.z_image.positions import picture_positions, prompt_positions
from mlx_imagegen.families.z_image.prompts import prompt_ids
from mlx_imagegen.families.z_image.transformer import NORMS, PromptRefiner, ZImageTransformer, filled_length
from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.parts import Part
from mlx_imagegen.layers.patches import patchified, unpatchified
from mlx_imagegen.layers.rope import rope_table
from tests.draw import drawn_data

DATA = drawn_data() / "z_image"
KINDS = ("base", "turbo")
RELATIVE = 1e-5
WAYS = ("noise", "seed", "image")
GUIDED = ("cfg", "weak", "normalized")


@pytest.fixture(params=KINDS)
def drawn(request: pytest.FixtureRequest) -> Path:
    return DATA / request.param


def options_of(folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    return options


def relative(ours: mx.array, reference: np.ndarray) -> float:
    assert ours.shape == reference.shape
    return float(np.abs(np.array(ours) - reference).max() / np.abs(reference).max())


def open_z_image(folder: Path) -> tuple[ZImage, dict[str, np.ndarray]]:
    family = load(folder).family
    assert isinstance(family, ZImage)
    return family, load_file(folder / "reference.safetensors")


def check_text(folder: Path) -> None:
    """Ids in the template, and states of all tokens that are no padding; a prompt too long loses the template's end."""
    family, reference = open_z_image(folder)
    options = options_of(folder)
    for name, words in (("prompt", options["prompt"]), ("empty", ""), ("long", options["long"])):
        ids, cut = prompt_ids(family.tokenizer, words, options["length"])
        assert ids == reference[f"ids.{name}"].tolist(), name
        assert bool(cut) == (name == "long") and words.strip().endswith(cut)
        kept = reference[f"states.{name}"]
        assert relative(family.states(ids)[0, -len(kept) :], kept) < RELATIVE, name


def check_blocks(folder: Path) -> None:
    """One block with modulation, its adaLN linear included, and one without."""
    family, reference = open_z_image(folder)
    weights, config = family.files.transformer, family.files.config
    r = {name: mx.array(value) for name, value in reference.items()}
    rope = rope_table(reference["block.positions"], config.axes_dims, config.rope_theta, np.float32)
    linear = weights.fill(Linear(config.adaln_dim, 4 * config.dim), "layers.0.adaLN_modulation.0")
    scale, gate, ffn_scale, ffn_gate = linear(r["block.adaln"]).reshape(4, -1)
    mod = mx.stack([1 + scale, mx.tanh(gate), 1 + ffn_scale, mx.tanh(ffn_gate)])
    block = weights.fill(ZImageTransformer(config)).layers[0]
    mod = mod * mx.stack([block[name].weight for name in NORMS])
    assert relative(block(r["block.x"], rope, [Part(12, mod)]), reference["block.modulated"]) < RELATIVE
    plain = weights.fill(PromptRefiner(config)).context_refiner[0]
    assert relative(plain(r["block.x"], rope), reference["block.plain"]) < RELATIVE


@pytest.mark.parametrize("name", ["odd", "even"])
def test_transformer_equals_diffusers(drawn: Path, name: str) -> None:
    check_transformer(drawn, name)


def check_transformer(folder: Path, name: str) -> None:
    """Refiners, pad tokens and positions, modulation from a table with other rows in it. `odd`: both sequences must be
    filled up; `even`: neither."""
    family, reference = open_z_image(folder)
    files, config = family.files, family.files.config
    x, features = (mx.array(reference[f"{name}.{part}"])[None] for part in ("x", "features"))
    grid = (x.shape[2] // 2, x.shape[3] // 2)
    length = filled_length(features.shape[1])
    prompt = rope_table(prompt_positions(length), config.axes_dims, config.rope_theta, np.float32)
    txt = files.transformer.fill(PromptRefiner(config))(features, prompt)
    positions = np.concatenate([picture_positions(grid, length + 1), prompt_positions(length)])
    rope = rope_table(positions, config.axes_dims, config.rope_theta, np.float32)
    timestep = 1000 * (1 - float(reference[f"{name}.t"][0]))
    tables = steps(tabulate(config, files.transformer.fill, [999.0, timestep, 20.0], mx.float32))
    model = files.transformer.fill(ZImageTransformer(config))
    out = model(patchified(x, 2, channels_last=True), txt, rope, tables[1])
    assert (length == features.shape[1]) == (name == "even")
    assert relative(unpatchified(out, grid, 2, channels_last=True)[0], reference[f"{name}.out"]) < RELATIVE


def parameters_of(folder: Path) -> dict[str, Any]:
    options = options_of(folder)
    named = {name: options[name] for name in ("steps", "width", "height", "seed")}
    guidance = {"guidance": 0.0} if options["base"] else {}
    return named | guidance | {"max_sequence_length": options["length"]}


def check_schedule(folder: Path) -> None:
    family, reference = open_z_image(folder)
    schedule = family.schedule(Settings(48, 48, options_of(folder)["steps"], 0.0))
    np.testing.assert_allclose(schedule.sigmas, reference["sigmas"], rtol=1e-6)
    np.testing.assert_allclose(schedule.timesteps, 1000 * reference["sigmas"][:-1], rtol=1e-6)


def check_latents(folder: Path) -> None:
    """What the loop leaves, before the decoder can smooth a difference away."""
    reference, pipeline = load_file(folder / "reference.safetensors"), load(folder)
    seen: list[mx.array] = []
    decode = pipeline.family.decode
    pipeline.family.decode = lambda x, settings: seen.append(x) or decode(x, settings)  # type: ignore[func-returns-value,method-assign]
    pipeline.generate(options_of(folder)["prompt"], noise=reference["noise"], **parameters_of(folder))
    grid = tuple(side // 2 for side in reference["latents"].shape[2:])
    latents = unpatchified(seen[-1], grid, 2, channels_last=True)  # type: ignore[arg-type]
    assert relative(latents, reference["latents"]) < 4 * RELATIVE  # four steps


def check_picture(folder: Path, way: str) -> None:
    """The whole pipeline: at most one level off on any pixel."""
    reference, options, parameters = (
        load_file(folder / "reference.safetensors"),
        options_of(folder),
        parameters_of(folder),
    )
    if way == "noise" or way in GUIDED:
        parameters["noise"] = reference["noise"]
    if way in GUIDED:
        asked = options["guidances"][way]
        parameters |= {"negative_prompt": options["negative_prompt"], "guidance": asked["guidance_scale"]}
        parameters |= {name: value for name, value in asked.items() if name == "cfg_normalization"}
    if way == "image":
        parameters |= {"image": folder / "picture.png", "strength": options["strength"]}
    result = load(folder).generate(options["prompt"], **parameters)
    ours, theirs = np.asarray(result.image).astype(int), reference[f"picture.{way}"].astype(int)
    assert ours.shape == theirs.shape and theirs.std() > 3
    assert np.abs(ours - theirs).max() <= 1


def test_text_states_equal_transformers(drawn: Path) -> None:
    check_text(drawn)


def test_blocks_equal_diffusers(drawn: Path) -> None:
    check_blocks(drawn)


def test_schedule_equals_diffusers(drawn: Path) -> None:
    check_schedule(drawn)


def test_latents_equal_diffusers(drawn: Path) -> None:
    check_latents(drawn)


@pytest.mark.parametrize("way", WAYS)
def test_picture_equals_diffusers(drawn: Path, way: str) -> None:
    check_picture(drawn, way)


@pytest.mark.parametrize("way", GUIDED)
def test_guided_picture_equals_diffusers(way: str) -> None:
    check_picture(DATA / "base", way)


def test_the_ways_differ() -> None:
    """So that the comparisons are as many: no reference picture is another one's."""
    reference = load_file(DATA / "base" / "reference.safetensors")
    pictures = [reference[f"picture.{way}"].astype(int) for way in (*WAYS, *GUIDED)]
    assert all(np.abs(a - b).max() > 3 for i, a in enumerate(pictures) for b in pictures[:i])


def test_staged_leaves_one_stage_in_memory() -> None:
    """The text encoder and the prompt's refiner are gone before the first step, and nothing is left at the end."""
    pipeline = load(DATA / "base", resident=False)
    seen = []

    def look(event: Any) -> None:
        seen.append({name for name, component in pipeline.family.components.items() if component.loaded})

    pipeline.generate("a fox", seed=1, steps=2, width=32, height=32, on_step=look)
    assert seen == [{"transformer"}] * 2
    assert not any(component.loaded for component in pipeline.family.components.values())


def test_the_loop_s_module_holds_neither_modulation_nor_the_prompt_s_blocks() -> None:
    family, _ = open_z_image(DATA / "base")
    paths = [path for path, _, _ in family.transformer.planned()]
    assert not [path for path in paths if "adaLN" in path or "context" in path or path.startswith(("cap", "t_emb"))]
    text = [path for path, _, _ in family.components["text_encoder"].planned()]
    layers = family.files.text_config.num_hidden_layers
    assert f"layers.{layers - 2}.mlp.up_proj" in text and f"layers.{layers - 1}.mlp.up_proj" not in text


def test_guidance_0_is_off_and_any_above_runs_a_second_branch() -> None:
    pipeline = load(DATA / "base")
    for guidance, cfg in ((0.0, 1.0), (0.5, 1.5), (4.0, 5.0)):
        (job,) = pipeline.jobs("a fox", seed=1, guidance=guidance)
        assert (job.settings.cfg, job.negative is None) == (cfg, guidance == 0)
        record = job.record(pipeline.model.manifest.guidance)
        assert record["guidance"] == guidance and "true_cfg" not in record
        assert job.negative is None or job.negative == Prompt("")


def test_normalization_shortens_what_guidance_made_longer_and_nothing_else() -> None:
    """As long as the prompt's own velocity at most, over the whole picture; the reference leaves shorter ones alone."""
    wanted = mx.array([[[3.0, 4.0]]])
    for unwanted, length in (([[[-3.0, -4.0]]], 5.0), ([[[3.6, 4.8]]], 4.0)):
        denoiser = ZImageDenoiser(load(DATA / "base").family.transformer, [], 2.0, [], normalization=True)
        v = denoiser.combine([wanted, mx.array(unwanted)])
        assert float(mx.linalg.norm(v)) == pytest.approx(length)


def test_turbo_takes_no_guidance() -> None:
    pipeline = load(DATA / "turbo")
    (job,) = pipeline.jobs("a fox", seed=1, guidance=5.0)
    assert job.negative is None and job.settings.cfg == 1
    assert any("takes no guidance" in note for note in job.notes)
    assert (pipeline.model.manifest.name, pipeline.model.manifest.defaults.steps) == ("z-image-turbo", 8)


def test_a_changed_transformer_s_tables_are_made_again(tmp_path: Path) -> None:
    """LoRAs may change the modulation."""
    family, _ = open_z_image(DATA / "turbo")
    settings = Settings(32, 32, 2, 0.0, extras={"max_sequence_length": 64})
    schedule = family.schedule(settings)
    family.denoiser([], schedule, settings)
    first = family.modulation._latest._kept
    family.denoiser([], schedule, settings)
    assert first is not None and family.modulation._latest._kept is first
    family.forget()
    assert family.modulation._latest._kept is None
