"""The plan against what a run really does: every product counted while it runs, every loaded array weighed."""

import functools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.errors import RequestError
from mlx_imagegen.families.base import Prompt, ReferenceTokens, Settings
from mlx_imagegen.families.hidream_o1.family import HiDreamO1
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.products import Product
from mlx_imagegen.limits import CPU_CACHE_LIMIT_BYTES
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.weights import layers, own_parameters
from mlx_imagegen.packing.recipes import read_recipe
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.planning.chips import CHIPS
from mlx_imagegen.planning.fitting import check_fits
from mlx_imagegen.planning.plan import block_bytes, describe, held_bytes, loaded_linears, plan
from mlx_imagegen.quantization.quantizer import quantize
from mlx_imagegen.request.job import usual_job
from mlx_imagegen.vision.qwen3 import open_tower, read_vision_config
from tests.draw import drawn_data
from tests.families.qwen_image.test_qwen_image import open_pipeline
from tests.families.qwen_image_21.test_qwen_image_21 import open_pipeline as open_qwen_image_21
from tests.tiny import draw_flux
from tests.watch import Velocity, around_velocity

ROOT = Path(__file__).parents[2]
DATA = drawn_data()
STORED = {
    "flux1": DATA / "flux" / "dev",
    "qwen_image": DATA / "qwen_image" / "image",
    "qwen_image_21": DATA / "qwen_image_21" / "model",
    "hidream_o1": DATA / "hidream_o1",
    "flux2": DATA / "flux2" / "klein",
    "flux3": DATA / "flux3" / "klein",
    "z_image": DATA / "z_image" / "base",
}


class Counter:
    """FLOPs of matrix products and attention, while `on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.flops, self.on = 0.0, False
        product, attention = Linear.product_of_parts, mx.fast.scaled_dot_product_attention

        def linear(layer: Linear, *parts: mx.array) -> Product:
            made = product(layer, *parts)
            if self.on and parts[0].size // parts[0].shape[-1] > 1:
                self.flops += 2.0 * made.out.size * sum(x.shape[-1] for x in parts)
            return made

        def attend(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
            if self.on:
                self.flops += 4.0 * q.size * k.shape[2]
            return attention(q, k, v, **options)

        monkeypatch.setattr(Linear, "product_of_parts", linear)
        monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attend)


def counted(pipeline: Pipeline, counter: Counter, **parameters: Any) -> tuple[float, Any]:
    """FLOPs of one step, and the job's settings."""
    family = pipeline.family

    def watched(velocity: Velocity) -> Velocity:
        def counted_velocity(x: mx.array, index: int) -> mx.array:
            counter.on = True
            out = velocity(x, index)
            counter.on = False
            return out

        return counted_velocity

    around_velocity(family, watched)
    job = pipeline.jobs("a cat", seed=1, **parameters)[0]
    pipeline.generate("a cat", seed=1, **parameters)
    return counter.flops / job.settings.steps, job.settings


@pytest.mark.parametrize("name", STORED)
def test_the_steps_arithmetic_is_what_a_run_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(STORED[name])
    side = 16 * pipeline.family.size_multiple
    pads = name in ("flux1", "flux2")
    extra = {"max_sequence_length": 32} if pads else {}
    flops, settings = counted(pipeline, Counter(monkeypatch), width=side, height=side, steps=2, **extra)
    lengths = [branch.txt.shape[1] for branch in pipeline._branches.values()]
    monkeypatch.setattr("mlx_imagegen.planning.plan.PROMPT_TOKENS", sum(lengths) / len(lengths))  # elsewhere a guess
    assert plan(pipeline.family, settings).step_flops == pytest.approx(flops, rel=1e-9 if pads else 0.01)


def test_reference_pictures_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as many tokens as the picture itself, and more of them stand in the prompt."""
    pipeline = open_pipeline(STORED["qwen_image"].with_name("zero"))
    pictures = [Image.new("RGB", size) for size in ((96, 96), (200, 110))]
    asked = {"width": 96, "height": 96, "steps": 1, "guidance": 1.0, "references": pictures}
    flops, settings = counted(pipeline, Counter(monkeypatch), **asked)
    (branch,) = pipeline._branches.values()
    prompt = Prompt("a cat", tuple(pictures))
    found = pipeline.family.reference_tokens(prompt, settings)
    assert found.image == branch.references.tokens.shape[1] > 36
    assert found.prompt == len(branch.references.features) > 0
    monkeypatch.setattr("mlx_imagegen.planning.plan.PROMPT_TOKENS", branch.txt.shape[1] - found.prompt)
    assert plan(pipeline.family, settings, prompt=prompt).step_flops == pytest.approx(flops, rel=0.005)


def test_references_that_stand_before_the_picture_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No linear layer sees them in a step, but every token attends to them; their keys and values are kept."""
    pipeline = open_qwen_image_21(STORED["qwen_image_21"])
    pictures = [Image.new("RGB", size) for size in ((96, 96), (200, 110))]
    asked: dict[str, Any] = {"width": 256, "height": 256, "steps": 1, "references": pictures}
    flops, settings = counted(pipeline, Counter(monkeypatch), **asked)
    (branch,) = pipeline._branches.values()
    prompt = Prompt("a cat", tuple(pictures))
    found = pipeline.family.reference_tokens(prompt, settings)
    assert found.image == 0 and found.prompt + found.prefix == branch.references.tokens.shape[1] > 10
    monkeypatch.setattr("mlx_imagegen.planning.plan.PROMPT_TOKENS", branch.txt.shape[1])
    made, alone = plan(pipeline.family, settings, gpu=True, prompt=prompt), plan(pipeline.family, settings, gpu=True)
    assert made.step_flops == pytest.approx(flops, rel=0.01) and made.step_flops > alone.step_flops
    (denoiser,) = pipeline._denoisers._kept[1:]
    (condition,) = denoiser.branches
    kept = sum(array.size for pair in condition.prefix({}).own for array in pair)
    assert kept == pipeline.family.prefix_values * (branch.txt.shape[1] + branch.references.tokens.shape[1])
    denoise, plain = made.stages[1], alone.stages[1]
    more = denoise.working_bytes - plain.working_bytes
    assert more >= 2 * pipeline.family.prefix_values * branch.references.tokens.shape[1]  # in bfloat16


@pytest.mark.parametrize("extra", [{}, {"layout": [[0.1, 0.5, 0.1, 0.9]]}])
def test_hidream_s_references_are_counted(extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other layers than the first and the last see them, in every step."""
    pipeline = load(STORED["hidream_o1"])
    pictures = [Image.new("RGB", size) for size in ((96, 96), (200, 110))]
    asked: dict[str, Any] = {"width": 128, "height": 96, "steps": 1, "references": pictures, **extra}
    flops, settings = counted(pipeline, Counter(monkeypatch), **asked)
    prompt = pipeline.jobs("a cat", seed=1, **asked)[0].prompt
    found = pipeline.family.reference_tokens(prompt, settings)
    lengths = [branch.txt.shape[1] - found.prompt for branch in pipeline._branches.values()]
    monkeypatch.setattr("mlx_imagegen.planning.plan.PROMPT_TOKENS", sum(lengths) / len(lengths))
    made, alone = plan(pipeline.family, settings, prompt=prompt), plan(pipeline.family, settings)
    assert made.step_flops == pytest.approx(flops, rel=0.01) and flops > 1.5 * alone.step_flops
    assert made.peak_bytes > alone.peak_bytes


def test_what_sees_hidream_s_references_is_counted_while_it_is_there() -> None:
    """It comes and goes before the denoiser; where that stays in memory, next to it."""
    family = load(STORED["hidream_o1"]).family
    assert isinstance(family, HiDreamO1)
    folder = family.files.folder
    vision, _ = read_vision_config(family.files.config.vision, folder / "config.json", folder)
    tower = open_tower(vision, family.files.weights)
    loaded = sum(value.nbytes for _, value in tree_flatten(tower.load().parameters()))
    settings = Settings(128, 128, 1, 0.0, extras={"max_sequence_length": 8})
    alone = plan(family, settings, gpu=False)
    made = plan(family, settings, gpu=False, prompt=Prompt("a cat", (Image.new("RGB", (128, 128)),)))
    assert [stage.name for stage in alone.stages] == ["denoise"]
    encode, denoise = made.stages
    assert (encode.name, encode.resident_bytes, encode.working_bytes) == ("encode", 0, loaded)
    assert made.resident_bytes == alone.resident_bytes == denoise.resident_bytes
    together = denoise.base_bytes + denoise.resident_bytes + max(loaded, denoise.working_bytes)
    assert made.resident_peak_bytes == together and "sees the references" in describe(made)[1]


def test_the_command_counts_references(tmp_path: Path, cli: Any) -> None:
    for index, size in enumerate(((1024, 1024), (640, 480))):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    asked = ("plan", "--model", "hidream-o1-dev", "--chip", "m4-max")
    together = cli(*asked, "--references", tmp_path / "0.png", tmp_path / "1.png")
    assert together.code == 0 and "2048x2048, 28 steps, 2 reference pictures" in together.out
    step = [float(done.out.split("a step: ")[1].split()[0]) for done in (cli(*asked), together)]
    assert step[1] > 2 * step[0]


def test_kernels_are_chosen_for_the_references_tokens_too() -> None:
    """Each layer's share of the sequence, with and without references."""
    family, prompt = load(STORED["hidream_o1"]).family, Prompt("a cat", (Image.new("RGB", (128, 128)),))
    settings = Settings(128, 128, 1, 0.0, extras={"max_sequence_length": 8})
    alone, together = (dict(seen(family, settings, each)) for each in (Prompt("a cat"), prompt))
    own, more = family.reference_tokens(Prompt("a cat"), settings), family.reference_tokens(prompt, settings)
    assert own == ReferenceTokens() and more.image == (128 // family.size_multiple) ** 2
    for path, count in together.items():
        within = ".language_model." in path
        assert count == alone[path] + (more.image if within else 0), path


def seen(family: Any, settings: Settings, prompt: Prompt) -> list[tuple[str, int]]:
    paths = [path for path, layer in family.components["transformer"].loaded_layers() if isinstance(layer, Linear)]
    return list(zip(paths, (count for _, count in loaded_linears(family, settings, prompt)), strict=True))


def test_a_model_that_changes_pictures_is_planned_with_one(cli: Any) -> None:
    folder = STORED["qwen_image"].with_name("zero")
    done = cli("plan", "--model", folder)
    assert done.code == 0 and "1024x1024, 40 steps, 1 reference picture" in done.out
    done = cli("quantize", "--model", folder, "--bits", "6", "--plan")
    assert done.code == 0 and "peak, one stage at a time" in done.out
    family = load(folder).family
    settings, prompt = (
        usual_job(manifests()["qwen-image-edit"], 16).settings,
        Prompt("", (Image.new("RGB", (1024, 1024)),)),
    )
    made, alone = plan(family, settings, True, prompt), plan(family, settings, True)
    assert made.step_flops > 2 * alone.step_flops
    assert (
        made.stages[0].working_bytes > 2 * 1024**2 * 4 * 4 > alone.stages[0].working_bytes
    )  # the encoder's 4 channels


@pytest.mark.parametrize("quant", [None, "q8", "q4"])
def test_resident_is_what_the_loaded_arrays_weigh(tmp_path: Path, quant: str | None) -> None:
    pipeline = load(draw_flux(tmp_path / "model"), quant=quant)
    for name, component in pipeline.family.components.items():
        expected = component.nbytes
        arrays = [value for _, layer in layers(component.load()) for value in own_parameters(layer).values()]
        assert sum(array.nbytes for array in arrays) == expected == held_bytes(component, gpu=False), name


def test_a_quantized_folder_is_planned_as_the_recipe_was(tmp_path: Path) -> None:
    source = draw_flux(tmp_path / "model")
    made = load(quantize(source, tmp_path / "made", quant="q4"))
    asked = load(source, quant="q4")
    settings = asked.jobs("a cat", seed=1)[0].settings
    plans = [plan(each.family, settings, gpu=True) for each in (made, asked)]
    stages = [[replace(stage, disk_bytes=0) for stage in each.stages] for each in plans]
    assert stages[0] == stages[1]
    assert plans[0].disk_bytes < 0.7 * plans[1].disk_bytes
    assert plan(load(source).family, settings, gpu=True, recipe=read_recipe("q4", "flux1")) == plans[1]
    assert plan(load(source).family, settings, gpu=True) != plans[1]


def test_disk_is_what_the_stages_files_hold(tmp_path: Path) -> None:
    folder = draw_flux(tmp_path / "model")
    family = load(folder).family
    made = plan(family, load(folder).jobs("a cat", seed=1)[0].settings)
    files = {
        name: open_checkpoint(folder / name).nbytes for name in ("text_encoder", "text_encoder_2", "transformer", "vae")
    }
    encode, denoise, decode = (stage.disk_bytes for stage in made.stages)
    assert (encode, denoise) == (files["text_encoder"] + files["text_encoder_2"], files["transformer"])
    assert decode == files["vae"] and made.disk_bytes == sum(files.values())
    assert made.resident_bytes == sum(
        held_bytes(family.components[c], False) for s in made.stages for c in s.components
    )


RUN = """
import sys
from pathlib import Path
from mlx_imagegen import load
from mlx_imagegen.planning.fitting import check_fits
from PIL import Image
model, side, starts = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
pipeline = load(model, resident=False)
asked = {"seed": [1, 2] if starts else 1, "steps": 1, "width": side, "height": side}
asked |= {"image": Image.new("RGB", (side, side), "gray")} if starts else {}
made = check_fits(pipeline.family, pipeline.jobs("a red circle", **asked)[0], pipeline.model.manifest)
pipeline.generate("a red circle", **asked)
lines = Path("/proc/self/status").read_text().splitlines()
print(made.peak_bytes, next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="a process's peak is read from Linux's /proc")
@pytest.mark.parametrize(
    ("model", "side", "starts"),
    [("flux-demo", 256, []), ("hidream-demo", 512, []), ("flux-demo", 256, ["image"]), ("qwen-demo", 256, ["image"])],
)
def test_the_peak_is_what_a_process_holds(model: str, side: int, starts: list[str]) -> None:
    """In a process of its own, from its first import to the picture; full size is in benchmarks/quant_resident.py."""
    # OpenBLAS keeps some 70 MB more with a second thread; the plan's figures are of two.
    env = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, model, str(side), *starts],
        cwd=ROOT, env=env, check=True, capture_output=True, text=True,
    )  # fmt: skip
    planned, measured = map(int, done.stdout.split())
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="on a GPU attention is fused")
def test_attention_s_scores_are_planned_once_as_mlx_holds_them() -> None:
    """The softmax works in their place. With a megapixel to look at, they are more than all else."""
    transformer = load("flux-demo").family.components["transformer"]
    heads, length, size = transformer.heads, 2048, 8
    q, k, v = (mx.random.normal((1, heads, length, size)) for _ in range(3))
    mx.eval(q, k, v)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0))
    held = mx.get_peak_memory() - before
    # What does not grow with the square of the length, buffers that are kept included, is out of the difference.
    short, long = (block_bytes(transformer, count * 8 * length, gpu=False) for count in (1, 2))
    planned = (long - 2 * short + CPU_CACHE_LIMIT_BYTES) / (2 * 8 * 8)
    assert planned == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize("name", ["flux1", "qwen_image"])
def test_encoding_a_picture_is_a_stage_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one stage at a time in memory, every picture is encoded before the denoiser is."""
    pipeline = load(STORED[name], resident=False)
    picture = Image.new("RGB", (64, 64), "gray")
    asked: dict[str, Any] = {"seed": [1, 2], "steps": 2, "width": 64, "height": 64}
    plain, drawn_on = (pipeline.jobs("a", **asked, **more) for more in ({}, {"image": picture}))
    made, both = (check_fits(pipeline.family, jobs[0], pipeline.model.manifest) for jobs in (plain, drawn_on))
    assert "encode_image" not in [stage.name for stage in made.stages]
    stage = next(stage for stage in both.stages if stage.name == "encode_image")
    encoder = pipeline.family.components["vae_encoder"]
    assert stage.components == ("vae_encoder",) and stage.working_bytes > 64 * 64 * 4
    assert both.resident_bytes - made.resident_bytes == stage.resident_bytes == held_bytes(encoder, False)
    loaded: list[str] = []
    monkeypatch.setattr(Pipeline, "_load", functools.partialmethod(_logged_load, loaded, Pipeline._load))
    list(pipeline.stream(drawn_on))
    stages = [name for name in loaded if name in ("encode_image", "denoise", "decode")]
    assert stages[0] == "encode_image" and stages.count("encode_image") == 1


def _logged_load(pipeline: Pipeline, loaded: list[str], load: Any, stage: str, report: Any) -> None:
    loaded.append(stage)
    load(pipeline, stage, report)


def test_seconds_are_bounded_by_arithmetic_or_by_memory(tmp_path: Path) -> None:
    pipeline = load(draw_flux(tmp_path / "model"))
    large, small = (pipeline.jobs("a cat", seed=1, width=side, height=side)[0].settings for side in (2048, 64))
    heavy, light = (plan(pipeline.family, settings, gpu=True) for settings in (large, small))
    for chip in CHIPS.values():
        for made in (heavy, light):
            arithmetic = made.steps * made.step_flops / (chip.teraflops * 1e12)
            traffic = made.steps * made.step_bytes / (chip.bandwidth_gb_per_second * 1e9)
            assert made.seconds(chip) == pytest.approx(max(arithmetic, traffic))
    assert heavy.seconds(CHIPS["m1"]) > heavy.seconds(CHIPS["m4-max"])


def test_the_command(tmp_path: Path, cli: Any) -> None:
    folder = draw_flux(tmp_path / "model")
    done = cli("plan", "--model", folder, "--quant", "q4", "--size", "256x128", "--chip", "m4-max")
    assert done.code == 0 and "256x128, 28 steps" in done.out and "m4-max: the 28 steps take" in done.out
    assert "through memory" in done.out and "specifications" in done.out and "disk: the full model" in done.out
    rows = [line.split()[0] for line in done.out.splitlines()]
    assert rows[1:6] == ["stage", "encode", "denoise", "decode", "in"]
    done = cli("plan", "--model", folder, "--chip", "m9")
    assert done.code == 2 and "known: m1" in done.err
    done = cli("plan", "--model", folder, "--quant", "none")  # as bench, compare and doctor call it
    assert done.code == 0 and done.out == cli("plan", "--model", folder).out
    done = cli("plan", "--model", folder, "--quant", "q4")
    assert "here everything stays in memory" in done.out and re.search(r"would be \d+\.\d MB", done.out)


def test_unknown_chip() -> None:
    pipeline = load(STORED["flux1"])
    made = plan(pipeline.family, pipeline.jobs("a cat", seed=1)[0].settings)
    with pytest.raises(RequestError, match="no chip is called 'm0'"):
        describe(made, "m0")


@pytest.mark.parametrize("name", STORED)
def test_the_steps_bytes_are_the_weights_and_what_passes_through_the_layers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, passed, product = load(STORED[name]), [0.0], Linear.product_of_parts

    def linear(layer: Linear, *parts: mx.array) -> Product:
        made, x = product(layer, *parts), parts[0]
        passed[0] += (sum(part.nbytes for part in parts) + made.out.nbytes) * (x.size // x.shape[-1] > 1)
        return made

    steps = 2

    def watched(velocity: Velocity) -> Velocity:
        def counted_velocity(x: mx.array, index: int) -> mx.array:
            with monkeypatch.context() as patch:
                patch.setattr(Linear, "product_of_parts", linear)
                return velocity(x, index)

        return counted_velocity

    around_velocity(pipeline.family, watched)
    side = 16 * pipeline.family.size_multiple
    asked: dict[str, Any] = {"seed": 1, "width": side, "height": side, "steps": steps}
    asked |= {"max_sequence_length": 32} if name == "flux1" else {}
    pipeline.generate("a cat", **asked)
    lengths = [branch.txt.shape[1] for branch in pipeline._branches.values()]
    monkeypatch.setattr("mlx_imagegen.planning.plan.PROMPT_TOKENS", sum(lengths) / len(lengths))
    made = plan(pipeline.family, pipeline.jobs("a cat", **asked)[0].settings, gpu=False)
    weights = held_bytes(pipeline.family.transformer, gpu=False)
    assert made.step_bytes == pytest.approx(made.branches * weights + passed[0] / steps, rel=0.01)
