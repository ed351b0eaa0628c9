"""`doctor`: a wrong kernel is found, models are listed by what they need, and the machine is described."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import Ran

from mlx_imagegen.families import open_family
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.tensor_shapes import has_tensor_shapes, shape_only_folder
from mlx_imagegen.layers.linear import PACKED, Packing
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.measuring import fits as fits_module
from mlx_imagegen.measuring import speed
from mlx_imagegen.measuring.doctor import low_power_of, warnings
from mlx_imagegen.measuring.fits import Fit, fits
from mlx_imagegen.measuring.speed import measured_chip, slowness
from mlx_imagegen.packing.recipes import read_recipe, recipe_names
from mlx_imagegen.planning.chips import Chip
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import usual_job
from mlx_imagegen.selftest import packed, suite
from tests.tiny import draw_flux

Cli = Callable[..., Ran]
GB = 10**9
SIX = Packing(6, 64)
EDITS = "qwen-image-edit-2509"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 16 GB whose speed is known."""
    monkeypatch.setattr(speed, "measured_chip", lambda: Chip(100, 1))
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: 16 * GB)


@pytest.fixture
def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-test of one packed product, by both kernels."""
    monkeypatch.setattr(suite, "KINDS", {"packed products": lambda: packed.product_checks(SIX, 3, 64, 128)})
    monkeypatch.setattr(suite.self_test, "__defaults__", (("packed products",),))


def broken(wrong: Callable[[mx.array], mx.array], monkeypatch: pytest.MonkeyPatch) -> None:
    real = packed.packed_matmul

    def product(*given: Any) -> mx.array:
        out = real(*given)
        return wrong(out) if given[-1] == PACKED else out

    monkeypatch.setattr(packed, "packed_matmul", product)


def test_the_command_says_so_and_fails(
    cli: Cli, quick: None, one_shape: None, flux_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("doctor", "--model", flux_folder)
    assert "2 of 2 are right" in cli(*command).out
    broken(lambda out: out + 1, monkeypatch)
    ran = cli(*command)
    assert ran.code == 2 and "1 of 2 are right" in ran.out
    assert ran.err.startswith("wrong: packed product, quantized_matmul") and "6 bits" in ran.err
    assert "Install another version of MLX" in ran.err
    broken(lambda out: out * mx.array(math.nan), monkeypatch)
    data = json.loads(cli(*command, "--json").out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [(each["right"], each["error"] is None) for each in data["self_test"]] == [(False, True), (True, False)]


def test_a_person_is_answered_first(cli: Cli, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recommendation, the models in it, then all else."""
    monkeypatch.setattr(speed, "measured_chip", lambda: Chip(100, 4))  # the slower one has a single model for both
    ran = cli("doctor", "--no-self-test")
    lines = ran.out.splitlines()
    assert lines[0] == "this machine has 16.0 GB:"
    assert lines[1].startswith("  best quality that fits, in 5 minutes a picture or less: ") and lines[2].startswith(
        "  fastest that fits: "
    )
    advised = {line.split(": ")[1].split()[0] for line in lines[1:3]}
    table = lines[4 : lines.index("", 4)]
    assert table[0].startswith("model ") and {row.split()[0] for row in table[1:]} == advised
    assert len(table) == 1 + len(advised) * (1 + len(recipe_names()))
    assert "mlx-imagegen doctor --all" in ran.out and "device " in ran.out


@pytest.fixture
def one_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe of every model takes twice as long to plan."""
    monkeypatch.setattr(fits_module, "recipe_names", lambda: ["q4"])


def test_all_rows_when_asked(cli: Cli, quick: None, one_recipe: None) -> None:
    data = json.loads(cli("doctor", "--no-self-test", "--all", "--json").out)
    assert {fit["model"] for fit in data["models"]} == set(manifests())
    assert data["recommended"]["best"]["model"] in manifests()


def test_every_quant_of_a_folder_is_weighed(quick: None, tmp_path: Path) -> None:
    folder = draw_flux(tmp_path / "flux")
    found = {fit.quant: fit for fit in fits([str(folder)])}
    assert set(found) == {"none", *recipe_names()}
    assert found["q4"].all_bytes < found["q6"].all_bytes < found["q8"].all_bytes < found["none"].all_bytes
    assert all(fit.reason is None and fit.seconds > 0 for fit in found.values())


def test_a_model_that_is_not_here_says_so(quick: None) -> None:
    found = {fit.quant: fit for fit in fits(["qwen-image"])}
    assert set(found) == {"none", *recipe_names()}
    assert found["q6"].verdict.startswith("does not fit: "), "float32, without fused attention"
    best = {fit.quant: fit for fit in fits(["hidream-o1-dev"])}["q4"]
    assert best.verdict.endswith("; 35.2 GB to download") and not best.verdict.startswith("does") and best.seconds > 0


def test_on_a_mac_it_is_known_before_the_download(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits_module, "on_gpu", lambda: True)
    monkeypatch.setattr("mlx_imagegen.machine.on_gpu", lambda: True)
    monkeypatch.setattr("mlx_imagegen.machine._working_set_bytes", lambda: 16 * GB)  # of 24 GB
    found = {(fit.model, fit.quant): fit for fit in fits(["qwen-image", "qwen-image-lightning", "hidream-o1-dev"])}
    assert found["qwen-image", "none"].verdict == "does not fit: 30.0 GB at the peak"
    assert found["qwen-image", "q4"].verdict == "fits, one stage at a time; 57.7 GB to download"
    assert found["hidream-o1-dev", "q6"].verdict == "fits, all stages at once; 35.2 GB to download"
    slow, fast = found["qwen-image", "q4"].seconds, found["qwen-image-lightning", "q4"].seconds
    assert slow / fast == pytest.approx(2 * 50 / 8, rel=1e-9), "two branches and 50 steps against one and 8"
    assert slow == pytest.approx(50 * 2 * 131.7, rel=0.01)  # of a chip with 1 TFLOPS


def test_what_is_said_of_published_models_is_the_plan_s(
    quick: None, one_recipe: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each opened by itself, as the command `plan` does; doctor opens those that are alike once. The first and the last
    of each family."""
    families: dict[str, list[str]] = {}
    for name, manifest in manifests().items():
        if has_tensor_shapes(manifest):
            families.setdefault(manifest.family, []).append(name)
    published = [names[at] for names in families.values() for at in (0, -1)]
    found: dict[tuple[str, str, bool], Fit] = {}
    for gpu, names in ((True, published), (False, [EDITS])):
        monkeypatch.setattr(fits_module, "on_gpu", lambda gpu=gpu: gpu)
        found |= {(fit.model, fit.quant, gpu): fit for fit in fits(names)}
    quants = ("none", "q4")
    assert len(set(published)) >= 14 and len(found) == len(quants) * (len(published) + 1)
    for name in (*published, EDITS):
        manifest = manifests()[name]
        with shape_only_folder(manifest) as folder:
            family = open_family(manifest, folder, WeightTransforms())
        job = usual_job(manifest, family.size_multiple)
        for quant in quants:
            recipe, gpu = None if quant == "none" else read_recipe(quant, manifest.family), name != EDITS
            made, fit = plan(family, job.settings, gpu, job.prompt, recipe=recipe), found[name, quant, gpu]
            said = fit.peak_bytes, fit.all_bytes, fit.seconds
            assert said == (made.peak_bytes, made.resident_peak_bytes, made.seconds(Chip(100, 1))), (name, quant)
            assert fit.download_bytes == manifest.download_bytes and fit.reason is None


def test_references_are_counted_for_models_that_are_not_here(quick: None) -> None:
    found = {(fit.model, fit.quant): fit for fit in fits(["qwen-image-2512", "qwen-image-edit-2511"])}
    plain, edit = found["qwen-image-2512", "q8"], found["qwen-image-edit-2511", "q8"]
    plain_defaults, edit_defaults = (manifests()[name].defaults for name in ("qwen-image-2512", "qwen-image-edit-2511"))
    pixels = [each.width * each.height * each.steps for each in (plain_defaults, edit_defaults)]
    assert edit.seconds / pixels[1] > 1.8 * plain.seconds / pixels[0]


def test_those_that_fit_come_first_and_the_fastest_of_them(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        Fit("absent", "none", "not here"),
        Fit("too large", "none", None, 17 * GB, 20 * GB, 1.0),
        Fit("slow", "none", None, 5 * GB, 6 * GB, 9.0),
        Fit("fast", "none", None, 12 * GB, 14 * GB, 2.0),
        Fit("staged", "none", None, 8 * GB, 12 * GB, 5.0),
    ]
    monkeypatch.setattr(
        fits_module, "_fits", lambda models, chip: given if models[0].requested_as == "flux-dev" else []
    )
    found = fits()
    assert [fit.model for fit in found] == ["fast", "staged", "slow", "too large", "absent"]
    assert [fit.verdict for fit in found] == [
        "only with every other program closed",  # 12 of 16 GB
        "fits, one stage at a time",
        "fits, all stages at once",
        "does not fit: 17.0 GB at the peak",
        "not here",
    ]


def test_speeds_are_measured() -> None:
    chip = measured_chip()
    assert 0.0001 < chip.teraflops < 1000 and 0.1 < chip.bandwidth_gb_per_second < 20_000


def test_half_of_what_a_chip_should_reach_is_warned_of() -> None:
    """An M2 Max: 13.6 TFLOP/s and 400 GB/s."""
    slow = slowness(Chip(199, 6.7), "Apple M2 Max")
    assert len(slow) == 2 and "6.7 TFLOP/s" in slow[0] and "199 GB/s" in slow[1] and "m2-max's 13.6" in slow[0]
    assert slowness(Chip(201, 6.9), "Apple M2 Max") == []
    assert slowness(Chip(1, 0.01), "Apple Paravirtual device") == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([" lowpowermode         1"], "on"),
        ([" sleep                1 (sleep prevented)", " lowpowermode         0"], "off"),
        ([" sleep                1"], "unknown"),
    ],
)
def test_low_power_mode_is_read(lines: list[str], expected: str) -> None:
    assert low_power_of(lines) == expected


def test_what_slows_a_mac_down_is_warned_of() -> None:
    known = {"blas": "Accelerate", "matrix units": "not used: they need macOS 26.2", "low-power mode": "on"}
    found = " ".join(warnings(known))
    assert "macOS 26.2" in found and "low-power mode is on" in found


def test_everything_as_json(cli: Cli, quick: None, flux_folder: Path) -> None:
    ran = cli("doctor", "--model", flux_folder, "--no-self-test", "--json")
    data = json.loads(ran.out)
    assert {"chip", "memory", "system", "blas", "mlx", "GPU", "MLX's cache of freed buffers"} <= set(data["machine"])
    assert data["self_test"] == [] and data["models"][0]["verdict"] == "fits, all stages at once"


def test_a_slow_blas_is_warned_of() -> None:
    known = {"matrix units": "none", "low-power mode": "off"}
    assert "libopenblas0-pthread" in warnings({**known, "blas": "reference BLAS (slow)"})[0]
    assert warnings({**known, "blas": "OpenBLAS"}) == []
