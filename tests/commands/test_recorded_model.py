"""What `--from` does with the model, LoRAs and revision that a picture's record names."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from PIL import Image

from mlx_imagegen.cli import Parser
from mlx_imagegen.commands import generate
from mlx_imagegen.commands.recorded_model import at_recorded_revision, revision_notes
from mlx_imagegen.commands.requests import read_requests
from mlx_imagegen.errors import RequestError
from mlx_imagegen.hub import download
from mlx_imagegen.hub.download import identify, is_local
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.image import read_metadata, write_picture
from tests.commands.test_downloads import FILES, Terminal, put

Cli = Callable[..., Ran]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUICK = ("--size", "32x32", "--steps", "1", "--quiet")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The repositories that are asked for; none can be had."""
    asked: list[str] = []

    def fetch(wanted: download.Download, *_: Any) -> None:
        asked.append(f"{wanted.repo}@{wanted.revision}")
        raise ConnectionError("no hub here")

    monkeypatch.setattr(download.HuggingFace, "plan", lambda _, wanted: fetch(wanted))
    monkeypatch.setattr(download.HuggingFace, "download", lambda _, wanted: fetch(wanted))
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: 10**12)
    return asked


def recorded(**fields: Any) -> Path:
    record = {"model": "flux-demo", "prompt": "a fox", "seed": 1, "steps": 1, "width": 32, "height": 32} | fields
    write_picture(Image.new("RGB", (8, 8)), Path("given.png"), record)
    return Path("given.png")


NAMED = {
    "a model": ({"model": "flux-schnell"}, "the model flux-schnell"),
    "a fine-tune": ({"model": "someone/finetune", "revision": COMMIT}, f"the model someone/finetune@{COMMIT}"),
    "a LoRA": ({"lora": [["someone/style:a.safetensors", 1.0]]}, "the LoRA someone/style:a.safetensors"),
}


@pytest.mark.parametrize("case", NAMED)
def test_what_a_record_names_is_fetched_after_a_yes_only(
    case: str, cli: Cli, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, words = NAMED[case]
    recorded(**fields)
    ran = cli("--from", "given.png", "-o", "a.png")
    assert ran.code == 2 and f"given.png asks for a download, and nothing was fetched: {words}" in ran.err
    monkeypatch.setattr(sys, "stdin", Terminal("n"))
    ran = cli("--from", "given.png", "-o", "a.png")
    assert ran.code == 2 and f"{words}. Go on? [y/N]" in ran.err and fetched == []
    assert cli("--from", "given.png", "-o", "a.png", "--yes").code == 2 and len(fetched) == 1
    monkeypatch.setattr(sys, "stdin", Terminal("y"))
    assert cli("--from", "given.png", "-o", "a.png").code == 2 and len(fetched) == 2


def test_what_a_flag_names_needs_no_question(cli: Cli, fetched: list[str]) -> None:
    recorded(model="flux-schnell")
    ran = cli("--from", "given.png", "--model", "flux-schnell", "-o", "a.png")
    assert "cannot be downloaded" in ran.err and len(fetched) == 1


def test_the_record_s_revision_is_the_one_that_is_opened(cli: Cli, fetched: list[str], cache: Path) -> None:
    recorded(model="someone/finetune", revision=COMMIT)
    cli("--from", "given.png", "-o", "a.png", "--yes")
    assert fetched == [f"someone/finetune@{COMMIT}"], "not main, which may have moved"
    put(cache, "someone/finetune", COMMIT, FILES)
    assert is_local(f"someone/finetune@{COMMIT}")
    found = identify(f"someone/finetune@{COMMIT}")
    assert (found.manifest.repo, found.manifest.revision, found.requested_as) == (
        "someone/finetune", COMMIT, "someone/finetune",
    )  # fmt: skip


def test_a_manifest_s_model_is_opened_at_the_record_s_revision() -> None:
    pinned = manifests()["flux-schnell"].revision
    assert at_recorded_revision("flux-schnell", {"revision": pinned}) == "flux-schnell"
    name = at_recorded_revision("flux-schnell", {"revision": COMMIT})
    assert (identify(name).manifest.revision, identify(name).requested_as) == (COMMIT, "flux-schnell")
    for model, revision in (("flux-demo", COMMIT), ("flux-schnell", None), ("flux-schnell", "main")):
        assert at_recorded_revision(model, {"revision": revision}) == model


def test_another_revision_is_said(tmp_path: Path) -> None:
    record = {"model": "…/tiny", "revision": COMMIT}
    (note,) = revision_notes(Path("a.png"), record, "/models/tiny", "f" * 40)
    assert note == f"a.png was made with revision {COMMIT[:12]} of /models/tiny, this is revision ffffffffffff: " + (
        "the picture may differ"
    )
    assert "a copy that names no revision" in revision_notes(Path("a.png"), record, "/models/tiny", None)[0]
    assert revision_notes(Path("a.png"), record, "/models/tiny", COMMIT) == []
    assert revision_notes(Path("a.png"), record, "/models/other", None) == []


def test_places_are_left_out_of_a_picture_unless_asked(cli: Cli, flux_folder: Path) -> None:
    made = ("a fox", "--model", flux_folder, *QUICK, "--seed", 1)
    assert cli(*made, "-o", "a.png").code == cli(*made, "-o", "b.png", "--record-paths").code == 0
    assert str(flux_folder) not in Path("a.png").read_bytes().decode("utf-8", "replace")
    assert read_metadata(Path("a.png"))["model"] == "…/schnell"
    assert read_metadata(Path("b.png"))["model"] == str(flux_folder)
    ran = cli("--from", "a.png", "-o", "c.png")
    assert ran.code == 2 and "was made with the model schnell, and where that is" in ran.err and "--model" in ran.err
    again = cli("--from", "a.png", "--model", flux_folder, "-o", "c.png", "--quiet")
    assert again.code == 0
    assert read_metadata(Path("c.png"))["steps"] == 1, "the same model: all of the record counts"
    assert list(Image.open("a.png").tobytes()) == list(Image.open("c.png").tobytes())


def test_a_seed_gives_the_same_bytes_without_the_report(cli: Cli, flux_folder: Path) -> None:
    for name in ("a.png", "b.png"):
        assert cli("a fox", "--model", flux_folder, *QUICK, "--seed", 1, "-o", name, "--no-report").code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert "report" not in read_metadata(Path("a.png")) and read_metadata(Path("a.png"))["prompt"] == "a fox"


def test_no_metadata_writes_the_pixels_alone(cli: Cli, flux_folder: Path) -> None:
    assert cli("a fox", "--model", flux_folder, *QUICK, "--seed", 1, "-o", "a.png", "--no-metadata").code == 0
    with Image.open("a.png") as image:
        image.load()
        assert image.info == {}
    ran = cli("info", "a.png")
    assert ran.code == 2 and "holds no record" in ran.err


def test_pictures_given_again_count_as_they_did(cli: Cli) -> None:
    """Strength, kind and steps are the record's; the network is to be named, since it may be fetched."""
    entry = {"sha256": "0" * 16, "model": "flux-controlnet-union", "strength": 0.7, "kind": "depth", "end": 0.8}
    given = recorded(control_sha256=[entry], redux_sha256=[{"sha256": "1" * 16, "scale": 0.25, "model": "redux"}])
    parser = Parser()
    generate.flags(parser)

    def asked(*words: str) -> dict[str, Any]:
        _, (request,) = read_requests(parser.parse_args(["--from", str(given), *words]))
        return request

    redux = ("--redux", "a.png:0.5:other")
    request = asked("--control", "a.png,net", *redux)
    assert request["control"] == [{"strength": 0.7, "kind": "depth", "end": 0.8, "picture": "a.png", "model": "net"}]
    assert request["redux"] == [{"scale": "0.5", "picture": "a.png", "model": "other"}], "what is given counts"
    assert asked("--control", "a.png", "--control", "b.png", *redux)["control"] == [
        {"picture": "a.png"},
        {"picture": "b.png"},
    ]
    with pytest.raises(RequestError, match="from control by flux-controlnet-union; name that with the picture again"):
        asked("--control", "a.png", *redux)
