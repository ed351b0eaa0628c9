"""`plan` answers a person first: what fits this machine or that Mac, then a table of it, then the figures."""

from collections.abc import Callable

import pytest
from conftest import Ran

from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.machine import GB
from mlx_imagegen.packing.recipes import recipe_names

Cli = Callable[..., Ran]


@pytest.fixture(autouse=True)
def a_machine_of_16_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: 16 * GB)


def test_without_a_model_it_says_what_to_begin_with(cli: Cli) -> None:
    lines = cli("plan").out.splitlines()
    assert lines[0] == "this machine has 16.0 GB:"
    assert lines[1].startswith("  best quality that fits, in 5 minutes a picture or less: ") and lines[2].startswith(
        "  fastest that fits: "
    )
    advised = {line.split(": ")[1].split()[0] for line in lines[1:3]}
    rows = lines[5 : 5 + len(advised) * (1 + len(recipe_names()))]
    assert {row.split()[0] for row in rows} == advised and len(lines) == 7 + len(rows)
    assert lines[-2].startswith("seconds: of an m4") and lines[-1].endswith("mlx-imagegen plan --all")


def test_a_mac_that_is_not_at_hand(cli: Cli) -> None:
    small, large = (cli("plan", "--memory", size, "--chip", "m2-pro").out.splitlines() for size in (16, 64))
    assert small[0] == "a Mac with 16 GB, of which 11.5 for the GPU:" and large[0].startswith("a Mac with 64 GB")
    assert small[1] != large[1] and "--quant" in small[1]
    assert not any(line.startswith("seconds: of") for line in small)


def test_all_rows_when_asked(cli: Cli) -> None:
    out = cli("plan", "--all", "--memory", 64).out
    table = [line.split()[0] for line in out.splitlines()[5:]]
    assert len(set(table) & set(manifests())) >= 10 and "plan --all" not in out


def test_a_model_s_quants(cli: Cli) -> None:
    """The answer, and the table of all quants only if it is asked for."""
    out = cli("plan", "--model", "z-image-turbo").out
    assert out.startswith("this machine has 16.0 GB:\n  best quality") and "--quant q8" in out.splitlines()[1]
    assert "does not fit" not in out and "peak, one stage at a time" in out
    closed = cli("plan", "--model", "flux2-klein-9b").out.splitlines()
    assert closed[0] == "this machine has 16.0 GB, only with every other program closed:" and "q8" in closed[1]
    table = cli("plan", "--model", "flux-schnell", "--all").out.split("\n\n")[1].splitlines()
    assert len(table) == 2 + len(recipe_names()) and table[-1].endswith("does not fit")


def test_where_no_quant_fits_it_says_so(cli: Cli) -> None:
    out = cli("plan", "--model", "qwen-image", "--memory", 8).out
    assert out.startswith("a Mac with 8 GB, of which 5.7 for the GPU: nothing fits")


@pytest.mark.parametrize("chip", [(), ("--chip", "m4")])
@pytest.mark.parametrize(
    ("side", "memory", "how"),
    [
        (1024, 8, "5.7 for the GPU: does not fit"),
        (1024, 16, "11.5 for the GPU: fits, one stage at a time is in memory"),
        (1024, 24, "17.2 for the GPU: fits, everything stays in memory"),
        (2048, 16, "11.5 for the GPU: fits, one stage at a time is in memory"),
        (2048, 32, "22.9 for the GPU: fits, everything stays in memory"),
    ],
)
def test_a_quant_goes_by_the_mac_asked_for(cli: Cli, side: int, memory: int, how: str, chip: tuple[str, ...]) -> None:
    asked = ("--model", "qwen-image-2.1", "--quant", "q4", "--size", side, "--memory", memory, *chip)
    lines = cli("plan", *asked).out.splitlines()
    assert lines[-1] == f"a Mac with {memory} GB, of which {how}"
    assert not any("this machine" in line for line in lines)
    peak = float(next(line for line in lines if line.startswith("peak, one stage")).split()[-2])
    assert peak <= 7.5 if side == 1024 else peak > 7.5


def test_the_estimate_stands_next_to_the_bound_and_says_which_it_is(cli: Cli) -> None:
    """52 % of what an M2 Pro can do, by mflux."""
    lines = cli("plan", "--model", "flux-schnell", "--quant", "q8", "--chip", "m2-pro").out.splitlines()
    bound = next(line for line in lines if "at the very least" in line)
    estimate = next(line for line in lines if "an estimate" in line)
    assert bound.startswith("m2-pro: the 4 steps take 40.9 s") and estimate.startswith("m2-pro: about 78.0 s")
    assert "52% of the bound" in estimate and "published: mflux issue 85" in estimate
    assert "an estimate" not in cli("plan", "--model", "flux-schnell", "--quant", "q8").out, "this is no Mac"
