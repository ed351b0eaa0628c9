"""Manifests as they ship, and what a model's name means."""

import json
import re
from pathlib import Path

import pytest

from mlx_imagegen.errors import ConfigError, MissingFileError, UnknownModelError
from mlx_imagegen.hub import manifest as manifest_module
from mlx_imagegen.hub.manifest import Manifest, data_folder, manifests
from mlx_imagegen.hub.recognition import find, recognize
from mlx_imagegen.hub.record import COMMIT, revision_of

PUBLISHED = [manifest for manifest in manifests().values() if manifest.folder is None]


def by_name(manifest: Manifest) -> str:
    return manifest.name


@pytest.mark.parametrize("manifest", PUBLISHED, ids=by_name)
def test_every_manifest_is_complete(manifest: Manifest) -> None:
    assert manifest.family in ("flux1", "flux2", "flux3", "qwen_image", "qwen_image_21", "hidream_o1", "z_image")
    assert manifest.repo and re.fullmatch(r"[\w.-]+/[\w.-]+", manifest.repo)
    text = (data_folder("weights") / f"{manifest.name}.toml").read_text()
    says = "no commit of it is known" in text and manifest.revision == "main"
    assert says or COMMIT.fullmatch(str(manifest.revision)), "a branch can change under a user's feet"
    assert manifest.licence != "unknown"
    assert manifest.download and manifest.download_bytes > 10**9
    assert manifest.guidance in ("embedded", "cfg", "cfg_from_0", "none", "never")
    defaults = manifest.defaults
    assert defaults.steps > 0 and defaults.width % 16 == 0 and defaults.height % 16 == 0
    assert (manifest.guidance == "none") == (defaults.guidance == 0)


@pytest.mark.parametrize(
    "network", [*manifests("control network").values(), *manifests("image adapter").values()], ids=by_name
)
def test_a_network_is_downloaded_by_its_commit_or_says_that_none_is_known(network: Manifest) -> None:
    text = (data_folder("weights") / f"{network.name}.toml").read_text()
    assert network.repo and network.download and network.licence != "unknown"
    assert COMMIT.fullmatch(network.revision or "") or (network.revision is None and "no commit of it is known" in text)


def test_every_key_is_read_somewhere() -> None:
    """A misspelt key would change nothing and say nothing."""
    package = Path(manifest_module.__file__).parents[1]
    code = "".join(path.read_text() for path in package.rglob("*.py"))
    keys = {key for manifest in manifests().values() for key in manifest.extras}
    assert not [key for key in keys if f'"{key}"' not in code]


def test_no_manifest_says_what_config_json_says() -> None:
    for path in data_folder("weights").glob("*.toml"):
        assert not re.search(r"hidden_size|num_layers|num_attention_heads|head_dim|channels", path.read_text()), path


def test_a_base_is_changed_table_by_table() -> None:
    base, edit, fast = (manifests()[name] for name in ("qwen-image", "qwen-image-edit-2509", "qwen-image-lightning"))
    assert (edit.defaults.steps, edit.defaults.width) == (40, 1024)
    assert edit.defaults.negative_prompt == base.defaults.negative_prompt == " "
    assert edit.family == base.family and edit.repo != base.repo
    assert "processor/*" in edit.download and "processor/*" not in base.download
    assert (fast.repo, fast.revision) == (base.repo, base.revision)
    assert (fast.defaults.steps, fast.defaults.guidance) == (8, 1.0)
    assert fast.extras["lora"]["file"].startswith("Qwen-Image-Lightning-8steps")


def test_lightning_walks_its_own_schedule() -> None:
    from mlx_imagegen.sampling import FlowMatchConfig, flow_match_schedule

    for name, expected in (
        ("qwen-image-lightning-4step", [1, 0.9, 0.75, 0.5, 0]),
        ("qwen-image-lightning", [1, 0.95455, 0.9, 0.83333, 0.75, 0.64286, 0.5, 0.3, 0]),
    ):
        manifest = manifests()[name]
        config = FlowMatchConfig.read(manifest.extras["scheduler"], name)
        for tokens in (1024, 6889):
            schedule = flow_match_schedule(config, manifest.defaults.steps, tokens)
            assert schedule.sigmas == pytest.approx(expected, abs=1e-5)


def test_names_repositories_and_folders(flux_folder: Path) -> None:
    assert find("flux-dev").manifest.repo == "black-forest-labs/FLUX.1-dev"
    assert find("Qwen/Qwen-Image").manifest.name == "qwen-image"  # not one of those that add a LoRA to it
    assert find("qwen/qwen-image-EDIT").manifest.name == "qwen-image-edit"
    local = find(str(flux_folder))
    assert (local.folder, local.manifest.family, local.requested_as) == (flux_folder, "flux1", str(flux_folder))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("flux-schnel", "flux-schnell"),
        ("FLUX.1-dev", "flux-dev"),
        ("qwen-image-3000", "qwen-image"),
        ("hidream", "hidream-o1"),
    ],
)
def test_unknown_names_list_the_near_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownModelError, match=f"did you mean .*{near}"):
        find(name)


def test_names_far_from_all_list_one_of_each_family() -> None:
    with pytest.raises(UnknownModelError, match="known models: .*flux-dev.*qwen-image.*mlx-imagegen models lists all"):
        find("zzz")


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "~/no/such/model"])
def test_a_path_that_is_no_folder(path: str) -> None:
    with pytest.raises(MissingFileError, match="is not a folder here"):
        find(path)


def repository(folder: Path, files: dict[str, dict[str, object]]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(data))
    return folder


FLUX = {"model_index.json": {"_class_name": "FluxPipeline"}}
QWEN = {"model_index.json": {"_class_name": "QwenImagePipeline"}}
PLUS = {"model_index.json": {"_class_name": "QwenImageEditPlusPipeline"}}
HIDREAM = {"config.json": {"architectures": ["Qwen3VLForConditionalGeneration"]}}


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("m", FLUX | {"transformer/config.json": {"guidance_embeds": True}}, "flux-dev"),
        ("m", FLUX | {"transformer/config.json": {"guidance_embeds": False}}, "flux-schnell"),
        ("m", {"transformer/config.json": {"_class_name": "FluxTransformer2DModel"}}, "flux-schnell"),
        ("m", QWEN, "qwen-image"),
        ("m", {"model_index.json": {"_class_name": "QwenImageEditPipeline"}}, "qwen-image-edit"),
        ("m", PLUS, "qwen-image-edit-2509"),
        ("m", PLUS | {"transformer/config.json": {"zero_cond_t": True}}, "qwen-image-edit-2511"),
        ("m", HIDREAM, "hidream-o1"),
        ("HiDream-O1-Image-Dev", HIDREAM, "hidream-o1-dev"),
        ("HiDream-O1-Image-Dev-2604", HIDREAM, "hidream-o1-dev-2604"),
        ("m", HIDREAM | {"mlx_imagegen.json": {"manifest": "hidream-o1-dev"}}, "hidream-o1-dev"),
    ],
)
def test_a_folder_is_told_by_its_own_files(
    name: str, files: dict[str, dict[str, object]], expected: str, tmp_path: Path
) -> None:
    assert recognize(repository(tmp_path / name, files)).name == expected


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, MissingFileError, "has no model_index.json, config.json or transformer/config.json"),
        (
            {"model_index.json": {"_class_name": "QwenImageLayeredControlPipeline"}},
            ConfigError,
            "says QwenImageLayeredControlPipeline",
        ),
        ({"config.json": {"architectures": ["LlamaForCausalLM"]}}, ConfigError, "not an architecture this library has"),
    ],
)
def test_other_architectures_are_refused(
    files: dict[str, dict[str, object]], error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(error, match=message):
        recognize(repository(tmp_path / "m", files))


def test_a_folder_s_revision_is_its_own(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository(tmp_path / commit, FLUX)
    assert revision_of(snapshot) == commit
    assert revision_of(repository(tmp_path / "mine", FLUX)) is None
    assert revision_of(repository(tmp_path / "mine", {"mlx_imagegen.json": {"revision": commit}})) == commit


BASE = {"title": "T", "family": "flux1", "defaults": {"steps": 4, "width": 64, "height": 64, "guidance": 1.0}}


@pytest.mark.parametrize(
    "change",
    [
        {"title": None}, {"family": 5}, {"defaults": None}, {"defaults": {"steps": 4}}, {"defaults": []},
        {"defaults": BASE["defaults"] | {"steps": 10**9}}, {"defaults": BASE["defaults"] | {"stepz": 1}},
        {"download": "x"}, {"download_bytes": -1}, {"guidance": "CFG"}, {"kind": "thing"}, {"families": [5]},
        {"takes": 5}, {"sizes": {"multiple": 0}}, {"sizes": {"presets": {"1:1": "x"}}}, {"sampling": {"shift": "3"}},
        {"lora": {"file": 5}}, {"lora": 5}, {"base": "m"}, {"base": "../m"}, {"base": "absent"}, {"base": 5},
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_refused_by_its_name(change: dict[str, object], tmp_path: Path) -> None:
    data = {key: value for key, value in (BASE | change).items() if value is not None}
    path = tmp_path / "m.toml"
    path.write_text("\n".join(f"{key} = {_toml(value)}" for key, value in data.items()))
    with pytest.raises((ConfigError, MissingFileError), match=r"\.toml"):
        manifest_module._read(path)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)
