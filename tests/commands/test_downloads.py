"""`download`, `models --cached` and `models --remove`, on a cache of the test's own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran

from mlx_imagegen.hub import download
from mlx_imagegen.hub.download import Download, RemoteFile
from mlx_imagegen.hub.manifest import manifests

Cli = Callable[..., Ran]
MODEL = manifests()["flux-schnell"]
FILES = {
    name.replace("*", "x"): b'{"_class_name": "FluxPipeline"}' if name.endswith("index.json") else b"{}"
    for name in MODEL.download
}


def put(cache: Path, repo: str, revision: str, files: dict[str, bytes]) -> Path:
    storage = cache / f"models--{repo.replace('/', '--')}"
    for name, data in files.items():
        path = storage / "snapshots" / revision / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (storage / "refs").mkdir(exist_ok=True)
    (storage / "refs" / "main").write_text(revision)
    return storage


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of a hub that has FLUX.1 [schnell]."""
    asked: list[str] = []

    class Hub:
        def __init__(self) -> None:
            self.cache = cache

        def is_whole(self, wanted: Download) -> bool:
            return (cache / "models--black-forest-labs--FLUX.1-schnell").is_dir()

        def plan(self, wanted: Download) -> list[RemoteFile]:
            asked.append(f"plan {wanted.repo}")
            return [RemoteFile(name, 10**9, False) for name in FILES]

        def download(self, wanted: Download) -> Path:
            asked.append(f"download {wanted.repo}")
            return put(cache, wanted.repo, wanted.revision, FILES) / "snapshots" / wanted.revision

    monkeypatch.setattr(download, "HuggingFace", Hub)
    monkeypatch.setattr(download, "_check_room", lambda *_: None)
    return asked


def test_a_model_is_downloaded_once(hub: list[str], cache: Path, cli: Cli) -> None:
    ran = cli("download", "flux-schnell")
    folder = cache / "models--black-forest-labs--FLUX.1-schnell" / "snapshots" / str(MODEL.revision)
    assert (ran.code, ran.out) == (0, f"{folder}\n")
    assert f"{len(FILES)}.0 GB in {len(FILES)} files" in ran.err and ran.err.endswith("flux-schnell is complete\n")
    assert hub == [f"plan {MODEL.repo}", f"download {MODEL.repo}"]
    again = cli("download", "flux-schnell")
    assert (again.out, again.err) == (f"{folder}\n", "flux-schnell is here already, and complete\n")
    assert len(hub) == 2
    assert cli("download", "flux-schnell", "--quiet").err == ""


def test_a_download_that_broke_off_is_gone_on_with(hub: list[str], cache: Path, cli: Cli) -> None:
    kept = dict(list(FILES.items())[1:])
    put(cache, str(MODEL.repo), str(MODEL.revision), kept)
    ran = cli("download", "flux-schnell")
    assert ran.code == 0 and "Downloading FLUX.1 [schnell]" in ran.err and len(hub) == 2


def test_what_is_here_needs_no_download(hub: list[str], cli: Cli, flux_folder: Path) -> None:
    assert cli("download", "flux-demo").err == "flux-demo is here; there is nothing to download\n"
    assert cli("download", flux_folder).out == f"{flux_folder}\n"
    assert cli("download", "--model", flux_folder).out == f"{flux_folder}\n"


def test_a_network_is_downloaded_by_its_name_where_its_commit_is_known(cache: Path, hub: list[str], cli: Cli) -> None:
    network = manifests("control network")["qwen-image-controlnet-union"]
    ran = cli("download", network.name, "--quiet")
    assert hub == [f"plan {network.repo}"] and "has no config.json, diffusion_" in ran.err, ran
    put(cache, str(network.repo), str(network.revision), dict.fromkeys(network.download, b"{}"))
    assert f"{network.name} is here; there is nothing to download" in cli("download", network.name).err
    ran = cli("download", "flux-schnell", "flux-controlnet-union")
    assert ran.code == 2 and "knows no commit of InstantX/FLUX.1-dev-Controlnet-Union" in ran.err and len(hub) == 1


def test_a_network_of_other_widths_is_called_by_its_name(cli: Cli) -> None:
    ran = cli("plan", "--model", "flux-demo", "--control", "flux-controlnet-union")
    assert ran.code == 2 and ran.err.startswith(
        "mlx-imagegen: flux-controlnet-union/config.json: 'joint_attention_dim'"
    )


def test_without_a_model_it_says_what_to_give(hub: list[str], cli: Cli) -> None:
    ran = cli("download")
    assert ran.code == 2 and "mlx-imagegen download MODEL" in ran.err and not hub
    assert hub == []


def test_a_name_misspelt_is_refused_before_any_download(hub: list[str], cli: Cli) -> None:
    ran = cli("download", "flux-schnell", "flux-dve")
    assert ran.code == 2 and "did you mean flux-dev" in ran.err and hub == []


def test_cached_lists_what_is_the_library_s(cache: Path, cli: Cli) -> None:
    assert "no model is in" in cli("models", "--cached").out
    put(cache, str(MODEL.repo), str(MODEL.revision), FILES | {"transformer/big": b"1" * 300_000_000})
    put(cache, "meta/llama", "main", {"config.json": b'{"architectures": ["LlamaForCausalLM"]}'})
    put(cache, "someone/finetune", "main", {"model_index.json": b'{"_class_name": "FluxPipeline"}'})
    put(cache, str(manifests()["hidream-o1"].repo), "another", {"config.json": b"{}"})
    header, *rows, total = (line.split() for line in cli("models", "--cached").out.splitlines())
    assert header == ["REPOSITORY", "SIZE", "COMPLETE", "MODELS"]
    assert [row[:4] for row in rows] == [
        ["HiDream-ai/HiDream-O1-Image", "0.0", "GB", "no"],
        ["black-forest-labs/FLUX.1-schnell", "0.3", "GB", "yes"],
        ["someone/finetune", "0.0", "GB", "yes"],
    ]
    assert rows[1][4:] == ["flux-schnell"] and total[:2] == ["0.3", "GB"]


def test_a_download_is_removed_after_a_yes(cache: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, other = (put(cache, repo, str(MODEL.revision), FILES) for repo in (str(MODEL.repo), "someone/else"))
    ran = cli("models", "--remove", "flux-schnell")
    assert ran.code == 2 and "nothing was removed" in ran.err and "add --yes" in ran.err and storage.is_dir()
    for answer, gone in (("n", False), ("y", True)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        ran = cli("models", "--remove", "flux-schnell")
        assert "which flux-schnell needs? [y/N]" in ran.err and storage.is_dir() != gone
    assert other.is_dir()
    assert cli("models", "--remove", "someone/else", "--yes").code == 0 and not other.exists()
    ran = cli("models", "--remove", "flux-schnell", "--yes")
    assert ran.code == 2 and "flux-schnell is not in" in ran.err and "models --cached" in ran.err


@pytest.mark.parametrize(("model", "words"), [("flux-demo", "built in"), ("tiny", "a folder or file of yours")])
def test_what_was_not_downloaded_is_not_removed(
    model: str, words: str, cache: Path, cli: Cli, flux_folder: Path
) -> None:
    ran = cli("models", "--remove", flux_folder if model == "tiny" else model, "--yes")
    assert ran.code == 2 and words in ran.err and flux_folder.is_dir()


class Terminal:
    def __init__(self, answer: str):
        self.answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return f"{self.answer}\n"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)
