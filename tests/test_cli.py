"""The command line, on the stored tiny FLUX.1: what it writes, what it prints, and how it says no."""

import argparse
import dataclasses
import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ran
from PIL import Image

from mlx_imagegen.cli import COMMANDS, USAGE
from mlx_imagegen.commands.output_paths import output_paths
from mlx_imagegen.commands.requests import LOAD_FIELDS, RECORD_FIELDS
from mlx_imagegen.hub.manifest import data_folder, manifests
from mlx_imagegen.image import read_metadata, write_picture
from mlx_imagegen.request.job import resolve
from mlx_imagegen.request.options import check_types
from mlx_imagegen.request.parameters import PICTURE_FIELDS

Cli = Callable[..., Ran]
QUICK = ("--size", "48x32", "--steps", "2", "--quiet")


@pytest.fixture
def make(cli: Cli, flux_folder: Path) -> Cli:
    """cli, with the tiny model and a quick picture."""

    def run(*arguments: object) -> Ran:
        return cli("generate", *arguments, "--model", flux_folder, *QUICK)

    return run


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# What it makes


def test_a_prompt_becomes_a_picture_with_its_record(make: Cli, flux_folder: Path) -> None:
    ran = make("A red fox, asleep!", "--seed", 7)
    assert ran == Ran(0, "a-red-fox-asleep-7.png\n", "")
    assert pixels("a-red-fox-asleep-7.png").shape == (32, 48, 3)
    record = read_metadata(Path("a-red-fox-asleep-7.png"))
    assert {name: record[name] for name in ("prompt", "seed", "steps", "width", "height", "guidance")} == {
        "prompt": "A red fox, asleep!", "seed": 7, "steps": 2, "width": 48, "height": 32, "guidance": 0.0,
    }  # fmt: skip
    assert (record["model"], record["manifest"], record["revision"]) == ("…/schnell", "flux-schnell", None)
    assert record["quantization"]["transformer"] == "float32"
    assert len(record["report"]["seconds"]["steps"]) == 2
    assert {"device", "mlx", "mlx-imagegen"} <= set(record["report"]["machine"])


def test_the_command_s_name_may_be_left_out(cli: Cli, flux_folder: Path) -> None:
    assert cli("a fox", "--model", flux_folder, *QUICK, "-o", "a.png").code == 0
    assert cli("--model", flux_folder, *QUICK, "a fox", "-o", "b.png").code == 0
    assert Path("a.png").is_file() and Path("b.png").is_file()


def test_the_prompt_has_a_flag(make: Cli) -> None:
    assert make("--prompt", "a fox", "--seed", 1).out == "a-fox-1.png\n"
    assert make("--prompt=-x", "--seed", 1).out == "x-1.png\n"


@pytest.mark.parametrize("named", [True, False], ids=["a model's name", "a folder"])
def test_a_request_is_resolved_once(named: bool, cli: Cli, flux_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed that is drawn early is the picture's, and so is the name that was found to be writable."""
    from mlx_imagegen import pipeline
    from mlx_imagegen.commands import generate
    from mlx_imagegen.hub.manifest import Model
    from mlx_imagegen.request import job

    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: (calls.append(name), function(*given, **named))[1]

    monkeypatch.setattr(job, "_jobs", counted("resolve", job._jobs))
    monkeypatch.setattr(generate, "output_paths", counted("paths", generate.output_paths))
    found = Model(manifests()["flux-schnell"], flux_folder, "flux-schnell")
    if named:
        monkeypatch.setattr(pipeline, "identify", lambda *_: found)
        monkeypatch.setattr(pipeline, "refuse_before_download", lambda *_: None)
    ran = cli("a fox", "--model", "flux-schnell" if named else flux_folder, *QUICK)
    assert calls == ["resolve", "paths"], ran
    (path,) = ran.out.split()
    assert path == f"a-fox-{read_metadata(Path(path))['seed']}.png"


def test_the_same_seed_gives_the_same_picture_and_another_another(make: Cli) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make("a fox", "--seed", seed, "-o", f"{name}.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("a.png"), pixels("c.png"))


def test_seeds_repeated_in_a_range_and_counted(make: Cli) -> None:
    ran = make("a fox", "--seed", "1-2", "--seed", "9", "-o", "{seed}.png")
    assert ran.out.split() == ["1.png", "2.png", "9.png"]
    assert make("a fox", "--seed", 5, "--count", 2, "-o", "{index:02}-{seed}.png").out.split() == [
        "01-5.png",
        "02-6.png",
    ]
    make("a fox", "--seed", 2, "-o", "alone.png")
    assert np.array_equal(pixels("alone.png"), pixels("2.png")), "a seed's picture does not depend on its neighbours"


def test_prompts_from_a_file_and_standard_input(make: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("prompts.txt").write_text("a red fox\n\n  a blue hen  \n")
    ran = make("--prompt-file", "prompts.txt", "--seed", 1)
    assert ran.out.split() == ["a-red-fox-1.png", "a-blue-hen-1.png"]
    with Path("prompts.txt").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert make("-", "--seed", 2).out.split() == ["a-red-fox-2.png", "a-blue-hen-2.png"]


def test_jobs_with_parameters_of_their_own(make: Cli) -> None:
    jobs = [
        {"prompt": "a fox", "steps": 1, "seed": 4},
        {"prompt": "a hen", "width": 32},
        {"prompt": "an owl", "seed": [5, 6]},
    ]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    ran = make("--prompt-file", "jobs.jsonl", "--seed", 1, "-o", "{prompt}-{seed}.png")
    assert ran.out.split() == ["a-fox-4.png", "a-hen-1.png", "an-owl-5.png", "an-owl-6.png"]
    assert pixels("a-hen-1.png").shape == (32, 32, 3) and pixels("a-fox-4.png").shape == (32, 48, 3)
    assert read_metadata(Path("a-fox-4.png"))["steps"] == 1 and read_metadata(Path("a-hen-1.png"))["steps"] == 2


def test_json_is_on_stdout_and_nothing_else(make: Cli) -> None:
    ran = make("a fox", "--seed", "1-2", "--json", "--guidance", 3)
    first, second = map(json.loads, ran.out.splitlines())
    assert (first["seed"], second["seed"], first["path"]) == (1, 2, "a-fox-1.png")
    assert first["report"] == read_metadata(Path("a-fox-1.png"))["report"]
    assert first["report"]["seconds"]["total"] > 0 and "takes no guidance" in first["report"]["notes"][0]


def test_notes_go_to_stderr_unless_quiet(cli: Cli, flux_folder: Path) -> None:
    arguments = ("generate", "a fox", "--model", flux_folder, *QUICK[:-1], "--guidance", 3, "--seed", 1)
    assert cli(*arguments).err.startswith("note: flux-schnell is distilled")
    assert cli(*arguments, "--quiet", "--overwrite").err == ""


def test_a_model_s_own_word_is_passed_on(cli: Cli, flux_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_imagegen import pipeline
    from mlx_imagegen.hub.manifest import Model
    from mlx_imagegen.hub.recognition import find

    noted = dataclasses.replace(find("flux-schnell").manifest, note="Made for four steps.")
    monkeypatch.setattr(pipeline, "identify", lambda name: Model(noted, flux_folder, name))
    asked = ("a fox", "--model", "flux-schnell", *QUICK[:-1], "--seed", 1)
    said, made = cli(*asked).err.splitlines()
    assert said == "note: Made for four steps." and made.startswith("seed 1, ")


@pytest.mark.parametrize("resident", ["--resident", "--no-resident"])
def test_previews_stand_beside_the_picture(resident: str, cli: Cli, flux_folder: Path) -> None:
    ran = cli(
        "a fox", "--model", flux_folder, "--size", "32x32", "--steps", 4, "--seed", "1-2", "-o", "{seed}.png",
        "--preview-every", 2, resident, "--quiet",
    )  # fmt: skip
    assert ran.out.split() == ["1.png", "2.png"]
    assert sorted(path.name for path in Path().iterdir()) == ["1.png", "1.step002.png", "2.png", "2.step002.png"]
    assert pixels("1.step002.png").shape == (32, 32, 3)
    assert not np.array_equal(pixels("1.step002.png"), pixels("1.png"))


def test_a_picture_to_start_from(make: Cli, flux_folder: Path) -> None:
    Image.effect_mandelbrot((48, 32), (-2, -1, 1, 1), 20).convert("RGB").save("in.png")
    for strength in (0.5, 1.0):
        assert (
            make("a fox", "--image", "in.png", "--strength", strength, "--seed", 1, "-o", f"{strength}.png").code == 0
        )
    assert not np.array_equal(pixels("0.5.png"), pixels("1.0.png"))
    assert len(read_metadata(Path("0.5.png"))["report"]["seconds"]["steps"]) == 1


def test_a_transparent_picture_is_no_black_one(make: Cli) -> None:
    """Its transparency is the mask; where a mask is given, it counts as white."""
    given = Image.new("RGBA", (48, 32), (0, 0, 0, 0))
    given.paste((200, 30, 30, 255), (0, 0, 16, 32))
    given.save("in.png")
    asked = ("a fox", "--image", "in.png", "--seed", 1, "--json")
    alone, masked = (json.loads(make(*asked, "-o", name, *more).out) for name, more in (
        ("a.png", ()), ("b.png", ("--mask-box", "0,0,16,32")),
    ))  # fmt: skip
    assert "image: what is transparent is drawn" in alone["report"]["notes"]
    assert np.array_equal(pixels("a.png")[:, :16], np.asarray(given.convert("RGB"))[:, :16])
    assert "image: what is transparent counts as white: a mask is given" in masked["report"]["notes"]
    assert (pixels("b.png")[:, 16:] == 255).all()


def test_no_quant_has_a_name_everywhere(make: Cli) -> None:
    """As bench, compare, doctor and the server call it."""
    made = make("a fox", "--seed", 1, "--quant", "none", "-o", "a.png")
    assert made.code == make("a fox", "--seed", 1, "-o", "b.png").code == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png")) and "quant" not in read_metadata(Path("a.png"))
    assert make("a fox", "--quant", "nine").code == 2


def test_given_noise_goes_before_the_seed(make: Cli) -> None:
    from mlx_imagegen.random import TorchGenerator

    np.save("noise.npy", TorchGenerator(8).normal((1, 16, 4, 6)))
    first = make("a fox", "--noise", "noise.npy", "--seed", 1, "-o", "noise.png", "--json")
    if first.code:  # the tiny draw has another number of channels or another scale: take what it asks for
        shape = tuple(map(int, first.err.partition("needs (")[2].partition(")")[0].split(",")))
        np.save("noise.npy", TorchGenerator(8).normal(shape))
        assert make("a fox", "--noise", "noise.npy", "--seed", 1, "-o", "noise.png").code == 0
    make("a fox", "--seed", 8, "-o", "seed.png")
    assert np.array_equal(pixels("noise.png"), pixels("seed.png"))


def test_a_picture_is_made_again_from_its_record(make: Cli, cli: Cli) -> None:
    make(
        "a fox, ÄÖ 狐",
        "--seed",
        5,
        "--true-cfg",
        2,
        "--negative-prompt",
        "hens",
        "--max-sequence-length",
        20,
        "-o",
        "a.png",
        "--record-paths",
    )
    assert cli("--from", "a.png", "-o", "b.png", "--quiet", "--record-paths").code == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert cli("--from", "a.png", "--seed", 6, "-o", "c.png", "--quiet", "--record-paths").code == 0
    again, other = (read_metadata(Path(name)) for name in ("a.png", "c.png"))
    assert {name for name in again if again[name] != other.get(name)} <= {"seed", "report"}
    assert cli("generate", "a hen", "--from", "a.png", "-o", "d.png", "--quiet").code == 0
    assert read_metadata(Path("d.png"))["prompt"] == "a hen"


def test_a_record_names_a_folder_in_a_way_that_lasts(
    make: Cli, cli: Cli, flux_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("model").symlink_to(flux_folder)
    here = Path().absolute()
    assert cli("a fox", "--model", "./model", *QUICK, "--seed", 1, "-o", "a.png", "--record-paths").code == 0
    assert read_metadata(Path("a.png"))["model"] == str(here / "model")
    assert cli("--from", "a.png", "--model", "model", "-o", "b.png", "--quiet").code == 0  # the same model
    assert read_metadata(Path("b.png"))["steps"] == read_metadata(Path("a.png"))["steps"] == 2
    Path("mine.toml").write_text(Path(data_folder("quant") / "q8.toml").read_text())
    assert cli("--from", "a.png", "--quant", "./mine.toml", "-o", "d.png", "--quiet", "--record-paths").code == 0
    assert read_metadata(Path("d.png"))["quant"] == str(here / "mine.toml")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for name in ("a.png", "d.png"):
        assert cli("--from", f"../{name}", "-o", name, "--quiet").code == 0
        assert np.array_equal(pixels(f"../{name}"), pixels(name))


def test_what_a_picture_was_made_from_must_be_given_again(make: Cli, cli: Cli) -> None:
    Image.new("RGB", (48, 32), "teal").save("in.png")
    make("a fox", "--image", "in.png", "--strength", 0.5, "--seed", 1, "-o", "a.png", "--record-paths")
    ran = cli("--from", "a.png", "-o", "b.png", "--quiet")
    assert ran.code == 2 and "give it again with --image" in ran.err
    assert cli("--from", "a.png", "--image", "in.png", "-o", "b.png", "--quiet").code == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_a_part_of_a_picture_is_drawn(make: Cli, cli: Cli, flux_folder: Path) -> None:
    given = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    Image.fromarray(given).save("in.png")
    ran = make("a fox", "--image", "in.png", "--mask-box", "16,0,48,32", "--seed", 1, "-o", "a.png", "--record-paths")
    assert ran.code == 0 and np.array_equal(pixels("a.png")[:, :16], given[:, :16])
    assert (pixels("a.png")[:, 24:] != given[:, 24:]).any()
    assert cli("--from", "a.png", "--image", "in.png", "-o", "b.png", "--quiet").code == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    quick = ("--seed", 1, "--steps", 1, "--model", flux_folder, "-o", "c.png")
    assert cli("a fox", "--image", "in.png", "--expand", "left=16", *quick).code == 0
    assert np.array_equal(pixels("c.png")[:, 16:], given)


def asked(*arguments: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How the model is opened, and the requests, that these flags of `generate` come to."""
    from mlx_imagegen.commands import generate
    from mlx_imagegen.commands.requests import read_requests

    parser = argparse.ArgumentParser()
    generate.flags(parser)
    return read_requests(parser.parse_args([str(argument) for argument in arguments]))


def test_flags_take_the_place_of_what_they_contradict_in_a_record(tmp_path: Path) -> None:
    record = {
        "model": "hidream-o1-dev", "revision": "x", "prompt": "a fox", "seed": 3, "steps": 2, "width": 64, "height": 32,
        "timesteps": [900, 100], "sampler": "flash", "guidance": 0.0, "lora": [["a.safetensors", 0.5]], "quant": "q8",
    }  # fmt: skip
    path = tmp_path / "a.png"
    write_picture(Image.new("RGB", (8, 8)), path, record)
    opening, (request,) = asked("--from", path)
    assert opening == {"model": "hidream-o1-dev", "quant": "q8", "lora": [["a.safetensors", 0.5]]}
    assert request == {key: record[key] for key in record if key not in (*opening, "revision")}
    assert asked("--from", path, "--steps", 4)[1][0].keys() == request.keys() - {"timesteps"}
    assert asked("--from", path, "--aspect", "1:1")[1][0].keys() == request.keys() - {"width", "height"} | {"aspect"}
    assert "seed" not in asked("--from", path, "--count", 3)[1][0]
    assert asked("--from", path, "--count", 3, "--seed", 9)[1][0]["seed"] == 9
    other, (request,) = asked("--from", path, "--model", "flux-dev", "--steps", 5)
    assert other == {"model": "flux-dev"}
    assert request == {"prompt": "a fox", "seed": 3, "width": 64, "height": 32, "steps": 5}


def test_guidance_in_a_name_is_what_was_asked_for() -> None:
    """Where it is the scale between two branches, too."""
    for model, name in (("flux-dev", "3.5.png"), ("qwen-image", "4.0.png")):
        manifest = manifests()[model]
        assert output_paths("{guidance}.png", resolve(manifest, 16, "a fox", 1), manifest) == [Path(name)]


def test_names_are_filled_in_and_folders_take_the_default(make: Cli) -> None:
    Path("out").mkdir()
    assert make("a fox", "--seed", 1, "-o", "out").out == "out/a-fox-1.png\n"
    ran = make("x" * 200, "--seed", 1, "-o", "out/{model}-{width}x{height}-{steps}-{guidance}-{index:03}.webp")
    assert ran.out == "out/flux-schnell-48x32-2-0.0-001.webp\n"
    assert len(Path(make("word " * 60, "--seed", 1).out.strip()).name) < 60
    assert make("?!", "--seed", 1).out == "picture-1.png\n"


def test_seed_and_seconds_are_said_of_each_picture(cli: Cli, flux_folder: Path) -> None:
    ran = cli("a fox", "--model", flux_folder, *QUICK[:-1], "--count", 2, "-o", "{index}.png")
    records = [read_metadata(Path(name)) for name in ran.out.split()]
    seconds = [record["report"]["seconds"]["total"] for record in records]
    assert ran.err.splitlines() == [
        f"seed {record['seed']}, {total:.1f} s" for record, total in zip(records, seconds, strict=True)
    ]


def test_a_picture_that_is_there_is_replaced_only_if_asked(make: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_imagegen.pipeline import Pipeline

    for name in ("1.png", "2.png"):
        Path(name).write_bytes(b"mine")
        Path(name).chmod(0o640)
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "stream", lambda *_: pytest.fail("the work began"))
        ran = make("a fox", "--seed", "1-3", "-o", "{seed}.png")
    assert (ran.code, ran.out) == (2, "") and "1.png is there already (and 1 more); add --overwrite" in ran.err
    assert Path("1.png").read_bytes() == b"mine"
    assert make("a fox", "--seed", 1, "-o", "{seed}.png", "--overwrite").out == "1.png\n"
    assert pixels("1.png").shape == (32, 48, 3) and Path("1.png").stat().st_mode & 0o777 == 0o640


def test_a_batch_goes_on_where_it_stopped(
    make: Cli, cli: Cli, flux_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1.png", "3.png"):
        Path(name).write_bytes(b"mine")
    ran = cli("a fox", "--model", flux_folder, *QUICK[:-1], "--seed", "1-4", "-o", "{seed}.png", "--skip-existing")
    assert ran.out.split() == ["2.png", "4.png"] and "skipped: 2 pictures are there already" in ran.err
    assert Path("1.png").read_bytes() == b"mine" and read_metadata(Path("4.png"))["seed"] == 4
    make("a fox", "--seed", 4, "-o", "alone.png")
    assert np.array_equal(pixels("alone.png"), pixels("4.png"))
    from mlx_imagegen.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "stream", lambda *_: pytest.fail("the work began"))
    assert make("a fox", "--seed", "1-4", "-o", "{seed}.png", "--skip-existing") == Ran(0, "", "")
    refused = make("a fox", "--overwrite", "--skip-existing")
    assert refused.code == 2 and "--skip-existing: not allowed with argument --overwrite" in refused.err


# The other commands


def test_models_lists_every_manifest(cli: Cli) -> None:
    assert cli("models", "--names").out.split() == list(manifests())
    table = cli("models").out.splitlines()
    assert len(table) == len(manifests()) + 1 and table[0].split() == [
        "NAME",
        "STEPS",
        "SIZE",
        "DOWNLOAD",
        "HERE",
        "TAKES",
        "LICENCE",
    ]
    assert any(
        "flux-dev" in line and "33.7 GB" in line and "FLUX.1-dev Non-Commercial License, gated" in line
        for line in table
    )
    assert {entry["name"] for entry in json.loads(cli("models", "--json").out)} == set(manifests())


def test_models_lists_what_runs_next_to_a_model(cli: Cli) -> None:
    known = manifests("control network") | manifests("image adapter") | manifests("prompt upsampler")
    assert cli("models", "--networks", "--names").out.split() == list(known)
    assert {entry["name"] for entry in json.loads(cli("models", "--networks", "--json").out)} == set(known)
    head, *rows = (re.split("  +", row) for row in cli("models", "--networks").out.splitlines())
    table = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    assert list(table) == list(known) and table["flux-redux-dev"] == {
        "GIVEN AS": "redux", "TO": "FLUX.1", "DOWNLOAD": "1.0 GB", "HERE": "no",
        "REPOSITORY": "black-forest-labs/FLUX.1-Redux-dev", "LICENCE": "FLUX.1-dev Non-Commercial License, gated",
    }  # fmt: skip
    assert table["flux-controlnet-union"]["DOWNLOAD"] == "6.6 GB, by hand"
    assert table["flux3-pup"]["GIVEN AS"] == "upsample" and table["flux3-pup"]["TO"] == "FLUX.3"
    assert "models --networks" in cli("models").err, "the plain list names it"
    assert "--networks goes with --names and --json" in cli("models", "--networks", "--cached").err


def test_info_prints_the_record(make: Cli, cli: Cli) -> None:
    make("a fox", "--seed", 7, "-o", "a.png")
    lines = dict(line.split(maxsplit=1) for line in cli("info", "a.png").out.splitlines())
    assert (lines["prompt"], lines["seed"], lines["manifest"]) == ("a fox", "7", "flux-schnell")
    assert "report.seconds.total" in lines and "report.machine.device" in lines
    assert json.loads(cli("info", "a.png", "--json").out) == read_metadata(Path("a.png"))


def test_help_and_version(cli: Cli) -> None:
    from mlx_imagegen import __version__

    assert cli() == cli("--help") == cli("-h") == Ran(0, USAGE + "\n", "")
    assert cli("--version").out.strip() == __version__
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            cli(name, "--help")
        assert stopped.value.code == 0


def test_help_and_version_are_commands_too(cli: Cli) -> None:
    from mlx_imagegen import __version__

    assert cli("help") == Ran(0, USAGE + "\n", "")
    assert cli("version") == Ran(0, f"{__version__}\n", "")
    with pytest.raises(SystemExit):
        cli("models", "--help")
    assert "--cached" in cli("help", "models").out
    refused(cli("help", "me"), "'me' is no command", "generate, upsample, models", 'mlx-imagegen generate "help me"')


def test_flags_are_named_like_the_parameters() -> None:
    from mlx_imagegen.commands import generate

    parser = argparse.ArgumentParser()
    generate.flags(parser)
    flags = {action.dest for action in parser._actions}
    assert set(PICTURE_FIELDS) | {"prompt", "seed", "count", "model", "resident"} <= flags


# How it says no


def test_numbers_are_refused_without_python_s_names_of_types(cli: Cli) -> None:
    refused(cli("generate", "x", "--steps", "1.5"), "argument --steps: '1.5' is not a whole number")
    refused(cli("generate", "x", "--guidance", "much"), "argument --guidance: 'much' is not a number")


@pytest.mark.parametrize("memory", ["-3", "0", "nan", "inf"])
def test_a_mac_has_some_memory(cli: Cli, memory: str) -> None:
    refused(cli("plan", "--memory", memory), f"--memory {memory}: give a Mac's memory in GB")


@pytest.mark.parametrize("line", [["bench", "--model", "zzz"], ["compare", "--models", "zzz", "--prompts", "p.txt"]])
def test_a_measurement_that_is_refused_leaves_no_folder(cli: Cli, line: list[str]) -> None:
    Path("p.txt").write_text("a red fox")
    assert cli(*line).code == 2
    assert [path.name for path in Path().iterdir()] == ["p.txt"]
    Path(line[0]).mkdir()  # the user's own stays, empty as it is
    assert cli(*line).code == 2
    assert Path(line[0]).is_dir()


def refused(ran: Ran, *words: str) -> None:
    """Exit 2, one line that holds the words, and nothing written."""
    assert ran.code == 2, ran
    assert ran.out == "" and ran.err.count("\n") == 1 and ran.err.startswith("mlx-imagegen: "), ran
    for word in words:
        assert word in ran.err, ran.err
    left = [path.name for path in Path().rglob("*") if path.suffix in (".png", ".jpg") or path.name.startswith(".")]
    assert not [name for name in left if not name.startswith("given")], left


BAD_FLAGS: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "a width that is no multiple": (("a fox", "--width", 100), ("width 100", "multiple of 16", "for example 96")),
    "a height of nothing": (("a fox", "--height", 0), ("height 0", "multiple of 16")),
    "a huge size": (("a fox", "--size", "16384x16384"), ("width 16384", "up to 8192")),
    "no size": (("a fox", "--size", "big"), ("--size", "'big' is not a size such as 1024 or 1024x768")),
    "two sizes": (("a fox", "--size", "64x64", "--width", 64), ("--size or --width and --height, not both",)),
    "an empty prompt": (("",), ("the prompt is empty",)),
    "a blank prompt": (("  ",), ("the prompt is empty",)),
    "no prompt": ((), ("no prompt is given", "--prompt-file")),
    "no steps": (("a fox", "--steps", 0), ("steps 0", "from 1 to 1000")),
    "steps in words": (("a fox", "--steps", "four"), ("--steps", "'four'", "--help")),
    "a strength of nothing": (("a fox", "--image", "given.png", "--strength", 0), ("strength 0.0", "above 0")),
    "a strength above all": (("a fox", "--image", "given.png", "--strength", 1.5), ("strength 1.5", "up to 1")),
    "a strength of no picture": (("a fox", "--strength", 0.5), ("no image is given",)),
    "an input picture that is not there": (("a fox", "--image", "nowhere.png"), ("image: nowhere.png is not there",)),
    "an input picture that is none": (
        ("a fox", "--image", "given.txt"),
        ("image: given.txt cannot be read as a picture",),
    ),
    "noise that is not there": (("a fox", "--noise", "nowhere.npy"), ("noise: nowhere.npy is not there",)),
    "noise that is none": (("a fox", "--noise", "given.txt"), ("noise: given.txt is not a NumPy array",)),
    "noise of another shape": (("a fox", "--noise", "given.npy"), ("noise has the shape (1, 2, 3)", "needs (1, ")),
    "an output folder that is not there": (("a fox", "-o", "no/such/a.png"), ("the folder no/such does not exist",)),
    "an output of another kind": (("a fox", "-o", "a.gif"), ("'a.gif'", "must end in .png")),
    "two pictures of one name": (
        ("a fox", "--count", 2, "-o", "a.png"),
        ("2 pictures would be written to a.png", "{seed}"),
    ),
    "an unknown field": (("a fox", "-o", "{sed}.png"), ("there is no {sed}", "{seed}")),
    "a field that reaches": (("a fox", "-o", "{seed.real}.png"), ("there is no {seed.real}",)),
    "a brace left open": (("a fox", "-o", "{seed.png"), ("--output {seed.png",)),
    "a field that cannot be formatted": (("a fox", "-o", "{prompt:03d}.png"), ("cannot be filled in",)),
    "a seed that is none": (("a fox", "--seed", "x"), ("--seed", "'x' is neither a whole number nor a range")),
    "a range turned round": (("a fox", "--seed", "4-1"), ("'4-1' is neither",)),
    "a range without end": (("a fox", "--seed", f"0-{10**30}"), ("is neither", "of 10000 at most")),
    "seeds and a count": (("a fox", "--seed", "1-3", "--count", 2), ("several seeds or a count",)),
    "previews of nothing": (("a fox", "--preview-every", 0), ("--preview-every 0",)),
    "an unknown flag": (("a fox", "--stepz", 3), ("unrecognized arguments: --stepz", "mean --steps?", "--help")),
    "a flag's beginning": (("a fox", "--out", "a.png"), ("did you mean --output?",)),
    "a flag like none": (("a fox", "--workers", 3), ("unrecognized arguments: --workers 3; mlx",)),
    "a flag of another program": (
        ("a fox", "--num-images", 3),
        ("no --num-images (did you mean --count?); mlx",),
    ),
    "another program's steps": (("a fox", "--num_inference_steps", 3), ("did you mean --steps?", "--help")),
    "another program's guidance": (("a fox", "--guidance-scale=3"), ("did you mean --guidance?",)),
    "another program's flag, misspelt": (("a fox", "--num-image", 3), ("--num-image 3 (did you mean --count?)",)),
    "a flag without its last letter": (("a fox", "--step", 3), ("--step 3 (did you mean --steps?)",)),
    "a flag cut short": (("a fox", "--guid", 3), ("unrecognized arguments: --guid 3 (did you mean --guidance?)",)),
    "a job with another program's key": (
        ("--prompt-file", "given.alias"),
        ("given.alias, line 1: a job has no 'guidance_scale'; did you mean guidance?",),
    ),
    "two prompts": (("a fox", "--prompt", "a hen"), ("the prompt is given twice",)),
    "a prompt without quotes": (
        ("a", "red", "fox"),
        ("unrecognized arguments: red fox (a prompt of several words goes in quotes)",),
    ),
    "a prompt and a file": (("a fox", "--prompt-file", "given.txt"), ("not both",)),
    "a prompt file that is not there": (("--prompt-file", "nowhere.txt"), ("--prompt-file: nowhere.txt is not there",)),
    "a prompt file that is no text": (
        ("--prompt-file", "given.npy"),
        ("cannot be read as UTF-8", "; give a text file, saved as UTF-8."),
    ),
    "a prompt file without prompts": (("--prompt-file", "given.empty"), ("given.empty holds no prompt",)),
    "a prompt file for compare": (("--prompt-file", "given.toml"), ("given.toml is not read as such", "on each line")),
    "a job with an unknown key": (
        ("--prompt-file", "given.jsonl"),
        ("given.jsonl, line 2", "no 'step'; did you mean steps"),
    ),
    "a job with a model of its own": (
        ("--prompt-file", "given.model"),
        ("given.model, line 1: 'lora_partial' is the same for all jobs: give it as --lora-partial",),
    ),
    "a job that is no JSON": (("--prompt-file", "given.broken"), ("given.broken, line 1: not valid JSON",)),
    "a job with a number beyond all": (("--prompt-file", "given.number"), ("given.number, line 1: not valid JSON",)),
    "a job with noise that is none": (("--prompt-file", "given.noise"), ("noise: 5 is not a NumPy array file",)),
    "a job with noises that are none": (("--prompt-file", "given.noises"), ("step_noise: 5 is not a NumPy array",)),
    "noise that is no numbers": (("a fox", "--noise", "given.nan.npy"), ("noise holds values that are no numbers",)),
    "noise that is text": (("a fox", "--noise", "given.words.npy"), ("given.words.npy is not a NumPy array file",)),
    "a job without a prompt": (("--prompt-file", "given.nothing"), ("a job needs a prompt",)),
    "a record that is not there": (("--from", "given.png"), ("given.png holds no record",)),
    "a mask without a picture": (("a fox", "--mask", "given.png"), ("mask says which part", "no image is given")),
    "a mask of another shape": (
        ("a fox", "--image", "given.png", "--mask", "given.wide.png"),
        ("the mask is 64x32, and the picture 32x32",),
    ),
    "a mask with nothing white": (
        ("a fox", "--image", "given.png", "--mask", "given.png"),
        ("the mask has nothing white",),
    ),
    "a mask that is none": (("a fox", "--image", "given.png", "--mask", "given.txt"), ("mask: given.txt cannot be",)),
    "a box outside": (("a fox", "--image", "given.png", "--mask-box", "0,0,33,9"), ("mask_box 0,0,33,9", "32x32")),
    "a mask between the places": (
        ("a fox", "--image", "given.png", "--mask-box", "1,1,3,3"),
        ("the mask is so small", "padding"),
    ),
    "padding without a mask": (("a fox", "--image", "given.png", "--padding", 8), ("padding is what to see",)),
    "margins beyond all": (("a fox", "--image", "given.png", "--expand", "left=9000"), ("expand", "up to 8192")),
    "references for a model that takes none": (("a fox", "--references", "given.png"), ("takes none",)),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_input_gets_one_line(case: str, cli: Cli, flux_folder: Path) -> None:
    arguments, words = BAD_FLAGS[case]
    Image.new("RGB", (32, 32)).save("given.png")
    Image.new("L", (64, 32), 255).save("given.wide.png")
    np.save("given.npy", np.full((1, 2, 3), np.nan))
    np.save("given.nan.npy", np.full((1, 4, 4, 4), np.nan))
    np.save("given.words.npy", np.array(["noise"]))
    Path("given.noise").write_text('{"prompt": "a fox", "noise": 5}')
    Path("given.noises").write_text('{"prompt": "a fox", "step_noise": 5}')
    for name, text in {
        "txt": "a fox", "empty": "\n \n", "jsonl": '{"prompt": "a"}\n{"prompt": "b", "step": 2}', "broken": "{no",
        "nothing": '{"steps": 2}', "model": '{"prompt": "a", "lora_partial": true}',
        "alias": '{"prompt": "a", "guidance_scale": 3}',
        "number": '{"prompt": "a fox", "steps": ' + "9" * 5000 + "}",
    }.items():  # fmt: skip
        Path(f"given.{name}").write_text(text)
    size = () if {"--size", "--width", "--height"} & set(arguments) else ("--size", "32x32")
    refused(cli("generate", *arguments, "--model", flux_folder, *size), *words)


MISTYPED = (None, 5, "x", [], {}, True, float("inf"))
OF_THEIR_KIND: dict[str, tuple[object, ...]] = {
    "model": ("x",), "quant": ("x",), "precision": ("x",), "lora": ([],), "lora_partial": (True,), "prompt": ("x",),
    "seed": (5,),
    "steps": (5,), "negative_prompt": ("x",), "guidance": (5,), "true_cfg": (5,), "max_sequence_length": (5,),
    "layout": ([], {}), "timesteps": ([],), "sampler": (),
}  # fmt: skip


@pytest.mark.parametrize("name", ["prompt", "seed", *LOAD_FIELDS, *RECORD_FIELDS])
def test_a_record_with_a_field_of_another_kind_is_refused(name: str, cli: Cli, flux_folder: Path) -> None:
    record = {"model": str(flux_folder), "prompt": "a fox", "seed": 1, "steps": 1, "width": 32, "height": 32}
    for value in MISTYPED:
        if not any(value == right and type(value) is type(right) for right in OF_THEIR_KIND.get(name, ())):
            write_picture(Image.new("RGB", (8, 8)), Path("given.png"), record | {name: value})
            refused(cli("--from", "given.png", "-o", "a.png"), name)
            if value is not None:
                Path("given.jsonl").write_text(json.dumps({"prompt": "a fox"} | {name: value}))
                refused(cli("--prompt-file", "given.jsonl", "--model", flux_folder, "-o", "a.png"), name)


@pytest.mark.parametrize("name", ["prompt", "seed"])
def test_a_record_without_what_made_the_picture_is_refused(name: str, cli: Cli, flux_folder: Path) -> None:
    """A seed drawn now would make another picture."""
    record = {"model": str(flux_folder), "prompt": "a fox", "seed": 1, "steps": 1, "width": 32, "height": 32}
    del record[name]
    write_picture(Image.new("RGB", (8, 8)), Path("given.png"), record)
    refused(cli("--from", "given.png", "-o", "a.png"), f"it has no '{name}'")


def test_standard_input_that_is_no_text(make: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe a fox"), encoding="utf-8"))
    refused(make("-"), "standard input is not utf-8 text")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("flux-schnel", ("no model is called 'flux-schnel'", "did you mean flux-schnell")),
        ("./nowhere", ("./nowhere is not a folder here",)),
        (".", ("has no model_index.json, config.json or transformer/config.json",)),
        ("hidream-o1", ("HiDream-O1-Image cannot be downloaded", "not in the cache", "unset HF_HUB_OFFLINE")),
        ("nobody/nothing", ("nobody/nothing cannot be downloaded",)),
    ],
)
def test_models_that_cannot_be_had(
    model: str, words: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # What cannot fit is refused before.
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: 10**12)
    refused(cli("generate", "a fox", "--model", model), *words)


def test_a_bad_request_is_refused_before_a_download(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_imagegen.hub import download

    def fetch(*_: Any) -> None:
        raise AssertionError("a download began")

    monkeypatch.setattr(download, "fetch", fetch)
    refused(cli("generate", "a fox", "--steps", 0), "steps 0")
    refused(cli("generate", "a fox", "--width", 1000), "width 1000")
    refused(cli("a fox", "--model", "hidream-o1", "--width", 0), "multiple of 32 pixels from 256 up", "2048")
    refused(cli("a fox", "--model", "hidream-o1-dev", "--width", 272), "multiple of 32", "for example 256")
    refused(cli("generate", "a fox", "--image", "nowhere.png"), "nowhere.png is not there")
    refused(cli("a fox", "--model", "black-forest-labs/FLUX.1-schnell", "--width", 1000), "width 1000")


@pytest.mark.parametrize("model", ["flux-schnell", "Qwen/Qwen-Image", "someone/finetune"])
def test_an_output_that_cannot_be_written_is_refused_before_a_download(
    model: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    from mlx_imagegen.hub import download

    monkeypatch.setattr(download, "fetch", lambda *_: pytest.fail("a download began"))
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: 10**12)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    Path("a_file").touch()
    config = tmp_path / "hub/models--someone--finetune/snapshots/main/model_index.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"_class_name": "FluxPipeline"}')
    for pattern, words in {
        "no/such/{seed}.png": "the folder no/such does not exist; create it",
        "a_file/{seed}.png": "a_file is a file, and no folder for",
        "a.gif": "'a.gif': a picture's name must end in",
        "a" * 248 + ".png": "File name too long",
        "a" * 300: "must end in .png",
        "a" * 300 + "/": "File name too long",
    }.items():
        refused(cli("a fox", "--model", model, "-o", pattern), words)


def test_a_new_folder_is_made_where_its_name_ends_in_a_slash(make: Cli) -> None:
    refused(make("a fox", "--seed", 1, "-o", "deep/er/"), "the folder deep/er does not exist; create it")
    with pytest.MonkeyPatch.context() as patch:  # refused once the folder is there, which goes again
        patch.setattr("mlx_imagegen.pipeline.check_fits", lambda *_: check_types({"steps": "x"}))
        refused(make("a fox", "--seed", 1, "-o", "out/"), "steps")
    assert not list(Path().iterdir())
    assert make("a fox", "--seed", 1, "-o", "out/").out == "out/a-fox-1.png\n" and Path("out/a-fox-1.png").is_file()


def test_a_note_is_said_once_for_many_pictures(cli: Cli, flux_folder: Path) -> None:
    Image.new("RGB", (50, 40)).save("given.png")
    sized = ("--image", "given.png", "--width", 48, "--height", 32, "--steps", 2)
    ran = cli("a fox", "--model", flux_folder, "--count", 3, "--preview-every", 1, *sized)
    assert ran.code == 0 and ran.err.count("note: the input picture is 50x40; it is resized to 48x32") == 1


def test_a_note_is_said_before_hours_of_work(cli: Cli, flux_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_imagegen.pipeline import Pipeline

    def stream(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "stream", stream)
    ran = cli("a fox", "--model", flux_folder, "--size", "32x32", "--guidance", 3)
    assert ran.code == 130 and "note: flux-schnell is distilled: it takes no guidance" in ran.err


def test_a_folder_that_may_not_be_looked_into_gets_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(model: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), model)

    monkeypatch.setattr("mlx_imagegen.hub.download.find", find)
    refused(cli("a fox", "--model", "/Volumes/models/x"), "/Volumes/models/x: Permission denied; allow it")


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, data = header_of(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def overlap(header: dict[str, Any]) -> None:
    """Moves the second tensor over the first, where both are of one size."""
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    first = entries[0]
    start, stop = first["data_offsets"]
    second = next(entry for entry in entries[1:] if entry["data_offsets"][1] - entry["data_offsets"][0] == stop - start)
    second["data_offsets"] = [start, stop]


def retype(header: dict[str, Any]) -> None:
    next(entry for name, entry in header.items() if name != "__metadata__")["dtype"] = "C64"


def as_integers(header: dict[str, Any]) -> None:
    """Of as many bytes, so that every offset is right."""
    next(entry for name, entry in header.items() if name != "__metadata__")["dtype"] = "I32"


def split_in_shards(folder: Path) -> None:
    """The transformer as two shards and an index, then without the second."""
    from safetensors.numpy import load_file, save_file

    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, whole.with_name(file))
    weight_map = {name: file for file, part in shards.items() for name in part}
    whole.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole.with_name("two.safetensors").unlink()


TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no config.json at all": (
        lambda model: [
            path.unlink() for path in model.rglob("*.json") if path.name in ("model_index.json", "config.json")
        ],
        ("has no model_index.json, config.json or transformer/config.json",),
    ),
    "no config.json for the transformer": (
        lambda model: (model / "transformer/config.json").unlink(),
        ("transformer/config.json",),
    ),
    "no config.json for a text encoder": (
        lambda model: (model / "text_encoder/config.json").unlink(),
        ("text_encoder/config.json",),
    ),
    "a missing shard": (split_in_shards, ("1 of 2 shards are missing (two.safetensors)",)),
    "no weights": (lambda model: (model / TRANSFORMER).unlink(), ("transformer holds no .safetensors file",)),
    "a truncated file": (
        lambda model: (model / TRANSFORMER).write_bytes((model / TRANSFORMER).read_bytes()[:-1000]),
        (TRANSFORMER, "its header describes", "download it again"),
    ),
    "a header length beyond the file": (
        lambda model: (model / TRANSFORMER).write_bytes(
            (10**7).to_bytes(8, "little") + (model / TRANSFORMER).read_bytes()[8:]
        ),
        ("its header should be 10000000 bytes long",),
    ),
    "overlapping offsets": (
        lambda model: with_header(model / TRANSFORMER, overlap),
        ("overlaps the tensor before it",),
    ),
    "a wrong dtype": (
        lambda model: with_header(model / TRANSFORMER, retype),
        ("has dtype C64, which is not supported",),
    ),
    "floats said to be integers": (
        lambda model: with_header(model / TRANSFORMER, as_integers),
        ("1 mistyped: ", "I32 (expected floats)"),
    ),
    "a config of other shapes": (
        lambda model: rewrite(model / "transformer/config.json", lambda config: config.update(joint_attention_dim=77)),
        ("do not fit the transformer's config.json", "misshapen: context_embedder.weight"),
    ),
    "a config of other rope axes": (
        lambda model: rewrite(model / "transformer/config.json", lambda config: config.update(axes_dims_rope=[2, 2])),
        ("transformer/config.json: 'axes_dims_rope' [2, 2] must be 3 even numbers",),
    ),
    "a config of more layers": (
        lambda model: rewrite(model / "transformer/config.json", lambda config: config.update(num_layers=9)),
        ("missing: transformer_blocks.",),
    ),
    "a config of fewer layers": (
        lambda model: rewrite(model / "transformer/config.json", lambda config: config.update(num_single_layers=0)),
        ("unexpected: single_transformer_blocks.",),
    ),
    "a config with a field cut": (
        lambda model: rewrite(model / "vae/config.json", lambda config: config.pop("latent_channels")),
        ("vae/config.json", "'latent_channels' is missing"),
    ),
    "a config with a field nobody reads": (
        lambda model: rewrite(model / "transformer/config.json", lambda config: config.update(new_trick=1)),
        ("'new_trick' is not known to this port",),
    ),
    "a config that is no JSON": (
        lambda model: (model / "transformer/config.json").write_text("{"),
        ("transformer/config.json is not valid JSON",),
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_model_is_refused(case: str, cli: Cli, flux_copy: Path) -> None:
    damage, words = DAMAGES[case]
    damage(flux_copy)
    refused(cli("generate", "a fox", "--model", flux_copy, *QUICK), *words)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a folder in which even root cannot write")
def test_a_folder_that_takes_no_file_is_refused_before_the_work(make: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_imagegen.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "stream", lambda *_: pytest.fail("the work began"))
    refused(make("a fox", "-o", "/proc/self/{seed}.png"), "/proc/self/", ".png is not writable")


def test_a_full_disk_is_refused_before_the_work(make: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_imagegen.pipeline import Pipeline

    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=48 * 32 * 3 - 1))
    monkeypatch.setattr(Pipeline, "stream", lambda *_: pytest.fail("the work began"))
    refused(make("a fox", "-o", "a.png"), "the disk of . is full", "Free some room or choose another place")


def test_a_disk_that_becomes_full(make: Cli) -> None:
    """A limit on the size of files makes the real write fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        ran = make("a fox", "--seed", 1, "-o", "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(ran, "a.png could not be written", "File too large", "Free some room")


def test_no_space_left(make: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.png").write_bytes(b"an older picture")

    def save(self: Image.Image, file: Any, *_: Any, **__: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", save)
    ran = make("a fox", "--seed", 1, "-o", "a.png", "--overwrite")
    assert (ran.code, ran.out) == (2, "") and "a.png could not be written: No space left on device" in ran.err
    assert Path("a.png").read_bytes() == b"an older picture" and len(list(Path().iterdir())) == 1


def test_ctrl_c_leaves_whole_pictures_only(make: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_imagegen import image

    written: list[Path] = []

    def write(picture: Image.Image, path: Path, *rest: Any) -> None:
        if written:

            def interrupt(file: Any, *_: Any, **__: Any) -> None:
                file.write(b"half")
                raise KeyboardInterrupt

            monkeypatch.setattr(Image.Image, "save", lambda self, file, *a, **k: interrupt(file))
        written.append(path)
        write_picture(picture, path, *rest)

    monkeypatch.setattr("mlx_imagegen.result.write_picture", write)
    ran = make("a fox", "--seed", "1-3", "-o", "{seed}.png")
    assert (ran.code, ran.out) == (130, "1.png\n") and ran.err.count("\n") == 1 and "interrupted" in ran.err
    assert [path.name for path in Path().iterdir()] == ["1.png"]
    assert image.read_metadata(Path("1.png"))["seed"] == 1


def test_a_real_ctrl_c_stops_between_steps(flux_folder: Path, tmp_path: Path) -> None:
    arguments = ("a fox", "--model", str(flux_folder), "--size", "64x64", "--steps", "1000", "--preview-every", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_imagegen", *arguments, "-o", "a.png"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "a.step003.png").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and error.count("\n") == 1 and "interrupted" in error, error
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"a.step{step:03}.png" for step in range(1, len(left) + 1)]
    assert all(pixels(tmp_path / name).shape == (64, 64, 3) for name in left)


def test_a_command_misspelt_is_no_prompt(cli: Cli) -> None:
    refused(cli("modles"), "'modles' is no command; did you mean models")


@pytest.mark.parametrize(
    ("word", "command"),
    [("list", "models"), ("ls", "models"), ("pull", "download"), ("convert", "quantize"), ("hlep", "help"),
     ("Models", "models"), ("downlaod", "download"), ("completion", "completions"), ("verison", "version")],
)  # fmt: skip
def test_what_is_nearly_a_command_draws_nothing(word: str, command: str, cli: Cli) -> None:
    refused(cli(word), f"'{word}' is no command; did you mean {command}?", f"mlx-imagegen generate {word}")
    refused(cli(word, "--model", "flux-demo"), f"did you mean {command}?")


def test_the_module_and_the_script_are_one(tmp_path: Path) -> None:
    for command in ([sys.executable, "-m", "mlx_imagegen"], [str(Path(sys.executable).with_name("mlx-imagegen"))]):
        if Path(command[0]).exists():
            ran = subprocess.run(
                [*command, "models", "--names"], capture_output=True, text=True, cwd=tmp_path, check=True
            )
            assert "flux-schnell" in ran.stdout
            assert subprocess.run([*command, "generate", ""], capture_output=True, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("arguments", [(), ("--version",), ("models", "--names")])
def test_a_reader_who_has_gone_is_no_error(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mlx_imagegen", *arguments]
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, mlx_imagegen.cli as c; c.main(['--help']); print(sorted(m for m in sys.modules if '.' not in m))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ran.stdout.splitlines()[-1]
    for heavy in ("mlx", "numpy", "PIL", "torch", "transformers", "mlx_vlm", "huggingface_hub", "tqdm"):
        assert f"'{heavy}'" not in loaded


def test_importing_generate_pulls_no_framework() -> None:
    code = "import sys; from mlx_imagegen import generate; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("mlx_vlm", "torch", "transformers", "diffusers", "huggingface_hub", "tokenizers"):
        assert f"'{heavy}'" not in ran.stdout


def test_progress_is_drawn_on_a_terminal(
    make: Cli, cli: Cli, flux_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ran = cli("a fox", "--model", flux_folder, *QUICK[:-1], "--seed", "1-2", "-o", "{seed}.png")
    assert ran.out.split() == ["1.png", "2.png"]
    assert "load transformer" in ran.err and "picture 2/2" in ran.err
    assert make("a fox", "--seed", 3).err == ""
