"""LoRA files: found and named, here and in the hub's cache; what is reported about them, and what is refused before a
model is open."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from mlx_imagegen import load
from mlx_imagegen.errors import DownloadError, LoraError, MissingFileError
from mlx_imagegen.lora.file import open_lora
from mlx_imagegen.lora.match import Lora
from mlx_imagegen.lora.merge import open_loras, parse_lora
from mlx_imagegen.quantization.quantizer import quantize
from tests.conftest import Ran
from tests.hub.test_download import COMMIT, put
from tests.lora.test_merge import DATA
from tests.tiny import draw_flux

Cli = Callable[..., Ran]
KOHYA = DATA / "flux1/kohya/lora.safetensors"
PAIR = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": ("F32", [2, 8]),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": ("F32", [8, 2])}  # fmt: skip
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1}


def write(path: Path, tensors: dict[str, tuple[str, list[int]]], data: dict[str, bytes] | None = None) -> Path:
    """A safetensors file of dtypes that numpy lacks; zeros but for `data`."""
    header, body = {}, b""
    for name, (dtype, shape) in tensors.items():
        raw = (data or {}).get(name, bytes(int(np.prod(shape)) * SIZES[dtype]))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


# ---- in a repository ------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_a_repository_s_file_is_named_with_its_commit(cache: Path) -> None:
    put(cache, {"sub/style [1].safetensors": KOHYA.read_bytes()})
    file = open_lora("someone/tiny:sub/style [1].safetensors")
    assert file.published == f"someone/tiny@{COMMIT}:sub/style [1].safetensors"
    assert Lora(file, 0.5).described() == {"file": file.published, "scale": 0.5}
    again = open_lora(file.published)
    assert again.published == file.published and again.path == file.path
    with pytest.raises(DownloadError):
        open_lora("someone/tiny@another:sub/style [1].safetensors")


def draw_style(path: Path, size: float) -> bytes:
    """On the last layer of tests/tiny.py's model."""
    shapes = {"A": (1, 64), "B": (16, 1)}
    tensors = {f"transformer.proj_out.lora_{end}.weight": size * mx.ones(shape) for end, shape in shapes.items()}
    mx.save_safetensors(str(path), tensors)
    return path.read_bytes()


def test_a_picture_s_record_names_the_commit(cli: Cli, cache: Path, tmp_path: Path) -> None:
    """--from gives the same file again when the repository's branch has gone on."""
    model = draw_flux(tmp_path / "model")
    storage = put(cache, {"style.safetensors": draw_style(tmp_path / "old.safetensors", 0.2)}).parents[1]

    def picture(name: str, *asked: object) -> np.ndarray:
        ran = cli("generate", *asked, "--quiet", "-o", tmp_path / name, "--record-paths")
        assert ran.code == 0, ran.err
        return np.array(Image.open(tmp_path / name))

    asked = ("a fox", "--model", model, "--seed", 1, "--steps", 1, "--size", "64x48")
    lora = ("--lora", "someone/tiny:style.safetensors:0.5")
    one = picture("one.png", *asked, *lora)
    told = json.loads(cli("info", tmp_path / "one.png", "--json").out)
    assert told["lora"] == [[f"someone/tiny@{COMMIT}:style.safetensors", 0.5]]
    (storage / "snapshots" / ("f" * 40)).mkdir()
    draw_style(storage / "snapshots" / ("f" * 40) / "style.safetensors", 0.6)
    (storage / "refs" / "main").write_text("f" * 40)
    again, newer = picture("again.png", "--from", tmp_path / "one.png"), picture("newer.png", *asked, *lora)
    assert (one == again).all()
    assert (one != newer).any()


def test_peft_s_file_brings_its_configuration(cache: Path) -> None:
    """Without it every strength would be 1 instead of alpha / rank."""
    adapter = {"adapter_model.safetensors": (DATA / "flux1/peft_folder/lora.safetensors").read_bytes()}
    put(cache, {f"sub/{name}": data for name, data in adapter.items()})
    with pytest.raises(DownloadError, match="adapter_config"):
        open_lora("someone/tiny:sub/adapter_model.safetensors")
    config = (DATA / "flux1/peft_folder/adapter_config.json").read_bytes()
    put(cache, {"sub/adapter_config.json": config})
    file = open_lora("someone/tiny:sub/adapter_model.safetensors")
    assert {entry.scale for entry in file.entries.values()} == {1.5}


# ---- names and scales -----------------------------------------------------------------------------------------------


def test_a_file_of_this_machine_has_no_commit() -> None:
    file = open_lora(KOHYA)
    assert file.published is None
    assert Lora(file, 1.0).described() == {"file": str(KOHYA.resolve()), "sha256": file.digest, "scale": 1.0}


def test_the_command_line_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_lora("style.safetensors") == "style.safetensors"
    assert parse_lora("style.safetensors:0.7") == ("style.safetensors", 0.7)
    assert parse_lora("style.safetensors:-1") == ("style.safetensors", -1.0)
    assert parse_lora("owner/name:style.safetensors") == "owner/name:style.safetensors"
    assert parse_lora("owner/name:style.safetensors:0.7") == ("owner/name:style.safetensors", 0.7)
    assert parse_lora("owner/name@v1:style.safetensors:0.7") == ("owner/name@v1:style.safetensors", 0.7)
    assert parse_lora("C:\\loras\\style.safetensors") == "C:\\loras\\style.safetensors"
    monkeypatch.chdir(tmp_path)
    Path("fox:2").mkdir()  # a name that looks as if a scale stood in it
    assert parse_lora("fox:2") == "fox:2"
    assert parse_lora("fox:2:0.5") == ("fox:2", 0.5)


def test_a_scale_in_the_name_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`loras/style.safetensors:0.5` looks like one."""
    monkeypatch.chdir(tmp_path)
    Path("loras").mkdir()
    Path("loras/style.safetensors").write_bytes(KOHYA.read_bytes())
    with pytest.raises(LoraError, match=r"lora=\[\('loras/style\.safetensors', 0\.8\)\]"):
        open_loras(["loras/style.safetensors:0.5"])
    with pytest.raises(LoraError, match=r"'strong' is no scale.*--lora loras/style\.safetensors:0\.8"):
        open_loras([parse_lora("loras/style.safetensors:strong")])


@pytest.mark.parametrize("scale", ["1", None, float("nan"), float("inf"), 1000, True])
def test_scales_that_are_none(scale: object) -> None:
    with pytest.raises(LoraError, match="the scale"):
        open_loras([(KOHYA, scale)])  # type: ignore[list-item]


def test_scales_of_any_number_type() -> None:
    assert [lora.scale for lora in open_loras([(KOHYA, np.float32(0.5)), [KOHYA, -2], KOHYA])] == [0.5, -2.0, 1.0]  # type: ignore[list-item]


@pytest.mark.parametrize("wanted", [str(KOHYA), KOHYA, (str(KOHYA), 0.5), None, {str(KOHYA): 0.5}])
def test_what_is_no_list(wanted: object) -> None:
    with pytest.raises(LoraError, match=r"give a list, as in lora=\["):
        open_loras(wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("item", [(str(KOHYA), 0.5, 1), {"file": str(KOHYA)}, 0.5, ()])
def test_what_is_no_lora(item: object) -> None:
    with pytest.raises(LoraError, match=r"is no LoRA: give a file, or \(file, scale\)"):
        open_loras([str(KOHYA), item, str(KOHYA)])  # type: ignore[list-item]


# ---- for which model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "FLUX.1 or Stable Diffusion"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "FLUX.1 or Stable Diffusion"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "FLUX.1 or Stable Diffusion"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
         "FLUX.1 or Stable Diffusion"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight", "FLUX.1"),
        ("lora_te2_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight", "FLUX.1"),
        ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight", "FLUX.1"),
        ("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight", "FLUX.1"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "Stable Diffusion or SDXL"),
    ],
)  # fmt: skip
def test_a_file_for_a_text_encoder_alone(tmp_path: Path, key: str, model: str) -> None:
    file = open_lora(write(tmp_path / "text.safetensors", {key: ("F32", [2, 8])}))
    assert file.family == model
    assert file.format != "unknown"


def test_words_decide_where_names_do_not(tmp_path: Path) -> None:
    key = "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"
    for word, model in (
        ("flux1", "FLUX.1"),
        ("sd_v1", "Stable Diffusion or SDXL"),
        ("?", "FLUX.1 or Stable Diffusion"),
    ):
        mx.save_safetensors(str(tmp_path / "text.safetensors"), {key: mx.ones((2, 2))}, {"ss_base_model_version": word})
        assert open_lora(tmp_path / "text.safetensors").family == model


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [("F8_E4M3", b"\x7f"), ("F8_E4M3", b"\xff"), ("F64", np.float64(1e300).tobytes()),
     ("F64", np.float64("nan").tobytes()), ("F16", np.float16("-inf").tobytes()), ("BF16", b"\x80\xff")],
)  # fmt: skip
def test_numbers_that_are_none_in_every_type(tmp_path: Path, dtype: str, bad: bytes) -> None:
    tensors = {name: (dtype, shape) for name, (_, shape) in PAIR.items()}
    open_lora(write(tmp_path / "good.safetensors", tensors))
    name = next(iter(PAIR))
    raw = bytearray(16 * len(bad))
    raw[5 * len(bad) : 6 * len(bad)] = bad
    with pytest.raises(LoraError, match="NaN or infinity"):
        open_lora(write(tmp_path / "bad.safetensors", tensors, {name: bytes(raw)}))


def test_the_largest_fp8_number_is_one(tmp_path: Path) -> None:
    tensors = {name: ("F8_E4M3", shape) for name, (_, shape) in PAIR.items()}
    name = next(iter(PAIR))
    open_lora(write(tmp_path / "good.safetensors", tensors, {name: b"\x7e\xfe" * 8}))


def test_whole_numbers(tmp_path: Path) -> None:
    tensors = {name: ("I8", shape) for name, (_, shape) in PAIR.items()}
    with pytest.raises(LoraError, match=r"whole numbers \(I8\)"):
        open_lora(write(tmp_path / "packed.safetensors", tensors))


@pytest.mark.parametrize("shape", [[0], [2]])
def test_an_alpha_of_several_numbers(tmp_path: Path, shape: list[int]) -> None:
    alpha = {"transformer.transformer_blocks.0.attn.to_q.alpha": ("F32", shape)}
    with pytest.raises(LoraError, match="should be one number"):
        open_lora(write(tmp_path / "alpha.safetensors", PAIR | alpha))


def test_several_adapters_in_one_file(tmp_path: Path) -> None:
    tensors = {
        name.replace(".weight", f".{adapter}.weight"): stored
        for adapter in ("default", "second")
        for name, stored in PAIR.items()
    }
    with pytest.raises(LoraError, match="several adapters"):
        open_lora(write(tmp_path / "two.safetensors", tensors))


@pytest.mark.parametrize("module", ["img_in", "transformer.x_embedder", "lora_unet_img_in"])
def test_a_control_lora_by_its_first_layer(tmp_path: Path, module: str) -> None:
    """As diffusers writes one, without the norms that Black Forest Labs' files have."""
    tensors = {f"{module}.lora_A.weight": ("BF16", [4, 128]), f"{module}.lora_B.weight": ("BF16", [3072, 4])}
    for name, width in (("depth", [4, 128]), ("plain", [4, 64]), ("fill", [4, 384])):
        shapes = tensors | {f"{module}.lora_A.weight": ("BF16", width)}
        (entry,) = open_lora(write(tmp_path / f"{name}.safetensors", shapes)).entries.values()
        assert entry.shape == (3072, width[1])


@pytest.mark.parametrize(
    "numbers",
    [{"r": 0}, {"r": -4}, {"r": "many"}, {"lora_alpha": float("nan")}, {"alpha_pattern": {"to_q": "x"}},
     {"alpha_pattern": {"to_q": float("inf")}}, {"rank_pattern": {"to_q": 0}}, {"rank_pattern": {"(": 4}}],
)  # fmt: skip
def test_a_configuration_that_gives_no_strength(tmp_path: Path, numbers: dict[str, object]) -> None:
    metadata = {f"transformer.{name}": value for name, value in ({"r": 4, "lora_alpha": 4} | numbers).items()}
    tensors = mx.load(str(DATA / "flux1/peft_patterns/lora.safetensors"))
    mx.save_safetensors(str(tmp_path / "style.safetensors"), tensors, {"lora_adapter_metadata": json.dumps(metadata)})
    with pytest.raises(LoraError, match="configuration cannot be read"):
        open_lora(tmp_path / "style.safetensors")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_a_lora_on_top_of_another_base(tmp_path: Path, start: str) -> None:
    """Such a start takes the LoRA's first values out of the base, which the file does not tell: added to the whole
    base, they would count twice."""
    for given, refuse in ((True, False), ("gaussian", False), ("eva", False), (start, True)):
        metadata = {"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.init_lora_weights": given}
        tensors = mx.load(str(DATA / "flux1/peft_patterns/lora.safetensors"))
        path = tmp_path / f"{given}.safetensors"
        mx.save_safetensors(str(path), tensors, {"lora_adapter_metadata": json.dumps(metadata)})
        if not refuse:
            open_lora(path)
            continue
        with pytest.raises(LoraError, match=rf"safetensors was started with '{start}'.*conversion does that.$"):
            open_lora(path)


def test_what_does_not_fit_is_refused_before_a_download(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody should fetch tens of GB to learn that a file's name was misspelt."""
    monkeypatch.setattr("mlx_imagegen.preflight.check_before_download", lambda *anything: None)
    monkeypatch.setattr("mlx_imagegen.pipeline.files_of", lambda *anything: pytest.fail("it would be downloaded now"))
    with pytest.raises(MissingFileError, match="there is no LoRA file"):
        load("flux-dev", lora=["stile.safetensors"])
    with pytest.raises(LoraError, match="looks like a LoRA for Qwen-Image"):
        load("flux-dev", lora=[DATA / "qwen_image/lightning/lora.safetensors"])
    with pytest.raises(LoraError, match=r"expected \[9216, 3072\]"):
        load("flux-dev", lora=[KOHYA])
    monkeypatch.setattr(
        "mlx_imagegen.quantization.conversion_plan.files_of", lambda *_: pytest.fail("it would be downloaded now")
    )
    with pytest.raises(MissingFileError, match="there is no LoRA file"):
        quantize("flux-dev", tmp_path / "q6", lora=["stile.safetensors"])


def test_a_missing_file_of_a_repository_s_look(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(MissingFileError, match=r"owner/name:file"):
        open_lora("someone/tiny")
    with pytest.raises(DownloadError, match="cannot be downloaded"):
        open_lora("someone/tiny:style.safetensors")
    with pytest.raises(MissingFileError):
        load(draw_flux(tmp_path / "model"), lora=["style.safetensors"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alpha_pattern": {"(a+)+$": 1}}, "repeats too much"),
        ({"rank_pattern": {".*.*.*.*x": 1}}, "repeats too much"),
        ({"rank_pattern": {"x" * 1000: 1}}, "too long"),
        ({"use_rslora": "false"}, "use_rslora is 'false'"),
        ({"r": 10**400}, "a rank of"),
        ({"r": "8"}, "a rank of '8'"),
        ({"lora_alpha": 1e300}, "an alpha of"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(config: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4} | config))
    save_file({"a.lora_A.weight": np.ones((4, 8), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(LoraError, match=message):
        open_lora(tmp_path / "a.safetensors")


def test_a_pair_without_a_rank_is_refused(tmp_path: Path) -> None:
    save_file({"a.lora_A.weight": np.ones((0, 8), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(LoraError, match="changes nothing"):
        open_lora(tmp_path / "a.safetensors")
