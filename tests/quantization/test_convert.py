"""The converter: streamed files equal in-memory packing bit for bit; whatever cuts it off leaves all or nothing."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_imagegen import load
from mlx_imagegen.documents import write_json
from mlx_imagegen.errors import CheckpointError, MissingFileError, OutputError, QuantizationError
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.hub.manifest import data_folder
from mlx_imagegen.hub.recognition import find
from mlx_imagegen.hub.record import RECORD
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import layers, own_parameters
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.quantization import convert, layout, partial
from mlx_imagegen.quantization.conversion_plan import plan_conversion
from mlx_imagegen.quantization.partial import JOURNAL, Partial
from mlx_imagegen.quantization.quantizer import quantize
from tests.draw import drawn_data
from tests.tiny import WEIGHTS, draw_flux, to_original, to_scaled_fp8
from tests.watch import Velocity, around_velocity

ROOT = Path(__file__).parents[2]
PICTURE = {"steps": 2, "width": 64, "height": 48, "seed": 3, "max_sequence_length": 16}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return draw_flux(tmp_path / "source")


def parameters(pipeline: Pipeline) -> dict[str, mx.array]:
    """Everything a run reads: every component, and the modulators, which are filled on demand."""
    out: dict[str, mx.array] = {}
    for name, component in pipeline.family.components.items():
        for path, layer in layers(component.load()):
            out |= {f"{name}/{path}.{key}": value for key, value in own_parameters(layer).items()}
    files = pipeline.family.files  # type: ignore[attr-defined]
    for path, layer in layers(files.transformer.fill(FluxModulators(files.config))):
        out |= {f"modulators/{path}.{key}": value for key, value in own_parameters(layer).items()}
    return out


def check_equal(folder: Path, made: Path, quant: str) -> None:
    """Loaded from the made folder, and packed while loading: the same arrays and the same picture."""
    streamed, in_memory = load(made), load(folder, quant=quant)
    ours, theirs = parameters(streamed), parameters(in_memory)
    assert ours.keys() == theirs.keys()
    assert any(value.dtype == mx.uint32 for value in ours.values())
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and mx.array_equal(value, theirs[name]), name
    pictures = [np.array(each.generate("a cat", **PICTURE).image) for each in (streamed, in_memory)]
    assert (pictures[0] == pictures[1]).all()


def digest(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("quant", ["q8", "q6", "q4"])
def test_saved_and_reloaded_equals_in_memory(source: Path, tmp_path: Path, quant: str) -> None:
    check_equal(source, quantize(source, tmp_path / "made", quant=quant), quant)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=["float32", "float16"])
def test_other_full_precision_types(tmp_path: Path, dtype: mx.Dtype) -> None:
    source = draw_flux(tmp_path / "source", dtype=dtype)
    made = quantize(source, tmp_path / "made", quant="q4")
    check_equal(source, made, "q4")
    stored = open_checkpoint(made / "transformer")
    assert stored["proj_out.weight"].dtype == ("BF16" if dtype == mx.float32 else "F16")
    assert stored["transformer_blocks.0.attn.to_q.scales"].dtype == "BF16"


@pytest.mark.parametrize("model", ["flux1", "qwen_image"])
def test_a_recipe_that_packs_the_autoencoder(model: str, tmp_path: Path) -> None:
    """Its files have convolutions of 1x1 where we have linear layers, and vectors as [channels, 1, 1]."""
    source = shutil.copytree(data_folder("weights") / "demo" / model.replace("flux1", "flux"), tmp_path / "source")
    path = source / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {name: value.astype(mx.float32) * 1.001 for name, value in mx.load(str(path)).items()}
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors)
    recipe = tmp_path / "all.toml"
    recipe.write_text(f"bits = 4\n[[{model}]]\nmatch = '*'\n")
    made = load(quantize(source, tmp_path / "made", quant=str(recipe)))
    same = load(source, quant=str(recipe))
    for name in ("vae_decoder", "vae_encoder"):
        ours, theirs = (dict(tree_flatten(each.family.components[name].load().parameters())) for each in (made, same))
        assert ours.keys() == theirs.keys()
        assert all(mx.array_equal(value, theirs[name]) for name, value in ours.items())


def test_the_original_single_file_is_written_in_diffusers_names(source: Path, tmp_path: Path) -> None:
    original = shutil.copytree(source, tmp_path / "original")
    to_original(original)
    made = quantize(original, tmp_path / "made", quant="q4")
    check_equal(original, made, "q4")
    same = quantize(source, tmp_path / "same", quant="q4")
    ours, theirs = (open_checkpoint(folder / "transformer") for folder in (made, same))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.bytes() == theirs[name].bytes()).all(), name


@pytest.mark.parametrize(("ending", "rows"), [("scale_weight", False), ("weight_scale", True)])
def test_scaled_fp8(source: Path, tmp_path: Path, ending: str, rows: bool) -> None:
    exact = dict(mx.load(str(source / WEIGHTS)))
    mx.eval(exact)  # loading is lazy, and the file is about to be rewritten
    to_scaled_fp8(source, ending, rows)
    made = quantize(source, tmp_path / "made", quant="q8")
    check_equal(source, made, "q8")
    name = "transformer_blocks.1.attn.to_q.weight"
    weights = load(source).family.components["transformer"].load()
    read = weights.transformer_blocks[1].attn.to_q.weight
    error = mx.abs(read - exact[name].astype(mx.float32))
    assert float(mx.max(error / mx.max(mx.abs(exact[name])))) < 2**-4  # e4m3 has three bits after the first
    assert float(mx.max(error)) > 0


def test_small_files_make_shards_with_an_index(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantize(source, tmp_path / "whole", quant="q6")
    monkeypatch.setattr(layout, "SHARD_BYTES", 40_000)
    sharded = quantize(source, tmp_path / "sharded", quant="q6")
    assert len(list((sharded / "transformer").glob("*-of-*.safetensors"))) > 2
    ours, theirs = (open_checkpoint(folder / "transformer") for folder in (sharded, whole))
    assert ours.keys() == theirs.keys()
    assert all((tensor.bytes() == theirs[name].bytes()).all() for name, tensor in ours.items())
    again = quantize(source, tmp_path / "again", quant="q6")  # and a sharded source is read
    assert digest(again) == digest(sharded)


def test_numbers_of_rows_and_threads_do_not_show(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quantize(source, tmp_path / "first", quant="q4", workers=1)
    monkeypatch.setattr(convert, "CHUNK", 999)
    assert digest(quantize(source, tmp_path / "second", quant="q4", workers=3)) == digest(first)


def test_the_folder_says_where_it_came_from(source: Path, tmp_path: Path) -> None:
    made = quantize(source, tmp_path / "made", quant="q6")
    record = read_json(made / RECORD)
    assert (record["manifest"], record["source"], record["recipe"], record["lora"]) == (
        "flux-dev",
        str(source),
        "q6",
        [],
    )
    assert record["tool"].startswith("mlx-imagegen ")
    assert find(str(made)).manifest.name == "flux-dev"
    entries = read_json(made / "transformer" / "config.json")["quantization"]
    assert entries["transformer_blocks.0.norm1.linear"] == {"bits": 8, "group_size": 64, "mode": "affine"}
    assert entries["single_transformer_blocks.2.proj_out"]["bits"] == 6
    assert not any(path.startswith(("x_embedder", "proj_out")) for path in entries)
    copied = [path.relative_to(source) for path in (source / "tokenizer").iterdir()]
    assert all((made / path).read_bytes() == (source / path).read_bytes() for path in copied)
    assert not list(tmp_path.glob("*.partial")) and not (made / partial.JOURNAL).exists()


def run_and_kill(source: Path, target: Path, pieces: int, **options: Any) -> None:
    """A conversion in another process that is killed, as by kill -9, when so many pieces are finished."""
    code = f"""
import itertools, os, signal
from mlx_imagegen.quantization.partial import JOURNAL, Partial
from mlx_imagegen.quantization.quantizer import quantize
count = itertools.count(1)
def progress(*_):
    if next(count) == {pieces}:
        os.kill(os.getpid(), signal.SIGKILL)
quantize({str(source)!r}, {str(target)!r}, quant="q4", on_progress=progress, **{options})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("pieces", [1, 40, 200])
def test_killed_and_run_again_it_goes_on(source: Path, tmp_path: Path, pieces: int) -> None:
    target = tmp_path / "made"
    run_and_kill(source, target, pieces)
    assert not target.exists()
    with (tmp_path / "made.partial" / partial.JOURNAL).open("ab") as journal:
        journal.write(b"transformer/transformer_blocks.0.ff.net.2.wei")  # torn in the middle of a line
    calls: list[int] = []
    quantize(source, target, quant="q4", on_progress=lambda _, done, total: calls.append(total - done))
    total = sum(len(each.pieces) for each in plan_conversion(source, "q4").layouts)
    assert total - pieces - 2 <= len(calls) <= total - pieces
    whole = quantize(source, tmp_path / "whole", quant="q4")
    assert digest(target) == digest(whole)


def test_killed_before_the_renaming(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "made"
    monkeypatch.setattr(partial.Partial, "rename", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quantize(source, target, quant="q4")
    assert not target.exists()
    monkeypatch.undo()
    quantize(source, target, quant="q4", on_progress=lambda *_: pytest.fail("nothing was left to be done"))
    load(target)


@pytest.mark.parametrize("change", ["recipe", "input"])
def test_half_done_work_from_something_else_is_not_continued(source: Path, tmp_path: Path, change: str) -> None:
    target = tmp_path / "made"
    run_and_kill(source, target, 150)
    if change == "input":
        draw_flux(source, seed=1)
    quant = "q6" if change == "recipe" else "q4"
    calls: list[Any] = []
    quantize(source, target, quant=quant, on_progress=lambda *call: calls.append(call))
    assert len(calls) == sum(len(each.pieces) for each in plan_conversion(source, quant).layouts)
    assert digest(target) == digest(quantize(source, tmp_path / "whole", quant=quant))


def test_an_input_that_changes_under_the_reader(source: Path, tmp_path: Path) -> None:
    def rewrite(*_: Any) -> None:
        with (source / WEIGHTS).open("r+b") as file:  # in place: another thread reads meanwhile, and finds no end
            file.seek(-2, os.SEEK_END)
            file.write(b"\0\0")

    with pytest.raises(CheckpointError, match="changed while it was read"):
        quantize(source, tmp_path / "made", quant="q4", on_progress=rewrite)
    assert not (tmp_path / "made").exists()


def test_an_input_that_is_cut_under_the_reader(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        quantize(source, tmp_path / "made", quant="q4", on_progress=lambda *_: os.truncate(source / WEIGHTS, 30_000))
    assert not (tmp_path / "made").exists()


def test_a_disk_too_small_is_refused_before_the_first_byte(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, partial.SPARE_BYTES + 9))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"made needs 0.9 MB \(and 1 GB to spare\), .* Free some room"):
        quantize(source, tmp_path / "made", quant="q4")
    assert not list(tmp_path.glob("made*"))


def test_a_disk_that_becomes_full_can_be_continued(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = os.pwrite, [60]

    def pwrite(file: int, data: Any, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputError, match="goes on from there"):
        quantize(source, tmp_path / "made", quant="q4")
    monkeypatch.undo()
    made = quantize(source, tmp_path / "made", quant="q4")
    assert digest(made) == digest(quantize(source, tmp_path / "whole", quant="q4"))


def test_folders_that_are_not_ours_are_left_alone(source: Path, tmp_path: Path) -> None:
    for name in ("made", "made.partial"):
        stranger = tmp_path / name
        stranger.mkdir()
        (stranger / "letter.txt").write_text("mine")
        with pytest.raises(QuantizationError, match="not made by quantize"):
            quantize(source, tmp_path / "made", quant="q4")
        assert (stranger / "letter.txt").read_text() == "mine"
        shutil.rmtree(stranger)
    (tmp_path / "made").mkdir()  # an empty folder is nobody's
    made = quantize(source, tmp_path / "made", quant="q4")
    before = digest(made)
    quantize(source, made, quant="q4", on_progress=lambda *_: pytest.fail("it is there already"))
    with pytest.raises(QuantizationError, match="another recipe"):
        quantize(source, made, quant="q8")
    assert digest(made) == before


def test_a_place_that_cannot_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(OutputError, match=r"made\.partial cannot be written \(Permission denied\)"):
        quantize(source, tmp_path / "made", quant="q4")


def test_two_at_once(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"

    def second(*_: Any) -> None:
        quantize(source, target, quant="q4")

    with pytest.raises(OutputError, match="another quantize is writing"):
        quantize(source, target, quant="q4", on_progress=second)


def test_the_name_of_what_is_half_done_is_not_taken(source: Path, tmp_path: Path) -> None:
    """A run for `made` would take a folder called so for its own leavings, and clear it."""
    with pytest.raises(QuantizationError, match="give the name without .partial"):
        quantize(source, tmp_path / "made.partial", quant="q4")
    assert not (tmp_path / "made.partial").exists()


def test_a_disk_without_locks(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network disks have none; there is no other run to wait for."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OutputError, match="cannot be locked .Operation not supported.*on another disk"):
        quantize(source, tmp_path / "made", quant="q4")


@pytest.mark.parametrize("how", ["quantize", "load"])
def test_a_source_that_is_quantized_already(source: Path, tmp_path: Path, how: str) -> None:
    made = quantize(source, tmp_path / "made", quant="q4")
    act: dict[str, Callable[[], Any]] = {
        "quantize": lambda: quantize(made, tmp_path / "again", quant="q8"),
        "load": lambda: load(made, quant="q8"),
    }
    with pytest.raises(QuantizationError, match="quantized already"):
        act[how]()


def test_an_output_inside_the_source_is_not_copied_into_itself(source: Path) -> None:
    made = quantize(source, source / "smaller", quant="q4")
    assert not (made / "smaller").exists() and not (made / "smaller.partial").exists()


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    """One tensor of 134 MB in float32, through a folder with nothing else in it."""
    code = f"""
import numpy as np
from pathlib import Path
from mlx_imagegen.footprint import process_peak_bytes
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.quantization.convert import Conversion, convert
from mlx_imagegen.quantization.layout import layout
from mlx_imagegen.loading.weights import open_weights
from mlx_imagegen.layers.linear import Linear
import mlx.nn as nn
from mlx_imagegen.quantization.partial import Partial
from mlx_imagegen.packing.recipes import read_recipe
import json, os
folder = Path({str(tmp_path)!r}) / "source"
folder.mkdir()
rows, columns = 4096, 8192
entry = {{"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, rows * columns * 4]}}
header = json.dumps({{"big.weight": entry}})
with (folder / "model.safetensors").open("wb") as file:
    file.write(len(header).to_bytes(8, "little") + header.encode())
    for _ in range(64):
        file.write(np.random.default_rng(0).standard_normal((rows // 64, columns)).astype(np.float32).tobytes())
tree = nn.Module()
tree.big = Linear(columns, rows, bias=False)
weights = open_weights("transformer", open_checkpoint(folder), [tree])
made = layout(weights, folder, read_recipe("q4", "flux1"))
before = process_peak_bytes()  # ru_maxrss would begin with what pytest holds, and hide what is taken here
convert(Conversion(folder, [made], True, {{}}), Partial(folder.with_name("made"), "x"), 2)
print(process_peak_bytes() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 120e6
    assert json.loads((tmp_path / "made" / RECORD).read_text())["identity"] == "x"


def velocity_error(source: Path, made: Path) -> float:
    """The first step's, against full precision, of a prompt that was not calibrated with."""
    first = []
    for folder in (source, made):
        pipeline = load(folder)

        def watched(velocity: Velocity) -> Velocity:
            def kept_velocity(x: mx.array, index: int) -> mx.array:
                first.append(velocity(x, index))
                return first[-1]

            return kept_velocity

        around_velocity(pipeline.family, watched)
        pipeline.generate("an old map", **(PICTURE | {"steps": 1}))
    return float(mx.sqrt(mx.mean((first[1] - first[0]) ** 2)))


def test_calibrated_weights_and_biases(source: Path, tmp_path: Path) -> None:
    """Closer on the first velocity of a picture not seen than by the same recipe without."""
    prompts = ["a cat on a mat", "a house by the sea", "three apples", "rain", "two dogs run", "the last train home"]
    drawing = {"width": 128, "height": 96, "steps": 4, "max_sequence_length": 16}
    lessons = [{"prompt": prompt} | drawing for prompt in prompts]
    plain, made = (
        quantize(source, tmp_path / f"made{len(asked)}", quant="q4", calibrate=asked) for asked in ([], lessons)
    )
    known = read_json(made / RECORD)["calibrated_with"]
    assert [{name: each[name] for name in lessons[0]} for each in known] == lessons
    assert "calibrated_with" not in read_json(plain / RECORD)
    error = {folder: velocity_error(source, folder) for folder in (plain, made)}
    assert error[made] < 0.9 * error[plain]
    biases = [
        open_checkpoint(folder / "transformer")["single_transformer_blocks.1.proj_out.bias"] for folder in (plain, made)
    ]
    assert biases[0].shape == biases[1].shape and (biases[0].bytes() != biases[1].bytes()).any()
    assert load(made).generate("a cat", **PICTURE).image.size == (64, 48)
    again = quantize(
        source,
        made,
        quant="q4",
        calibrate=lessons,
        on_progress=lambda *_: pytest.fail("it is there"),
        on_step=lambda _: pytest.fail("nothing is left to be learnt"),
    )
    assert again == made
    with pytest.raises(QuantizationError, match="other files or by another recipe"):
        quantize(source, made, quant="q4", calibrate=[*lessons[:-1], lessons[-1] | {"seed": 1}])


@pytest.mark.parametrize(
    ("name", "file", "changes"),
    [
        ("hidream_o1", "config.json", {"hidream_o1": {"noise_scale": 4.0, "t_eps": 0.004}}),
        ("flux/schnell", "scheduler/scheduler_config.json", {"shift": 2.5}),
    ],
)
def test_what_the_source_s_folder_says_its_copy_says(tmp_path: Path, name: str, file: str, changes: Any) -> None:
    """A record that names a manifest does not bring the manifest's numbers back."""
    source = shutil.copytree(drawn_data() / name, tmp_path / "model")
    config = read_json(source / file)
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    write_json(source / file, config)
    made = quantize(source, tmp_path / "made", quant="q8")
    published = load(drawn_data() / name).generate("a fox", **PICTURE)
    given, copied = (load(folder).generate("a fox", **PICTURE) for folder in (source, made))
    apart = [np.abs(np.subtract(given.image, other.image, dtype=np.int16)).mean() for other in (published, copied)]
    assert apart[1] < apart[0] / 4, apart
    assert given.record.get("noise_scale") == copied.record.get("noise_scale")


@pytest.mark.parametrize("name", ["qwen_image/image", "qwen_image/edit", "hidream_o1"])
def test_the_other_families(tmp_path: Path, name: str) -> None:
    source = drawn_data() / name
    made = quantize(source, tmp_path / "made", quant="q4")
    streamed, in_memory = load(made).family.components, load(source, quant="q4").family.components
    for key, component in streamed.items():
        pairs = zip(layers(component.load()), layers(in_memory[key].load()), strict=True)
        for (path, layer), (_, other) in pairs:
            for each, value in own_parameters(layer).items():
                assert mx.array_equal(value, other[each]), f"{key}/{path}.{each}"
    assert any(component.held_as.count("-bit") for component in streamed.values())


def test_the_command(source: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    planned = cli("quantize", "--model", source, "--bits", 4, "--plan")
    assert planned.code == 0 and "6 bits, groups of 64" in planned.out and "transformer/proj_out" not in planned.err
    assert "in all:" in planned.out and "peak, one stage at a time" in planned.out
    assert "kept at 16 bits" in planned.out  # T5's narrow layers
    done = cli("quantize", "--model", source, "--bits", 4, "-o", tmp_path / "made")
    assert done.code == 0 and done.out.strip() == str(tmp_path / "made")
    assert "up to 6 times as long" in done.err
    load(tmp_path / "made")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--bits", 5, "-o", "x"], "recipes for q4, q6, q8"),
        (["--quant", "q9", "-o", "x"], "no recipe is called 'q9'"),
        (["--bits", 4], "-o FOLDER is missing"),
        (["--bits", 4, "-o", "x", "--workers", 0], "--workers 0"),
        (["--bits", 4, "-o", "x", "--calibrate", "none.txt"], "--calibrate: none.txt is not there"),
        (["--bits", 4, "-o", "x", "--steps", 2], "add --calibrate FILE"),
        (["--bits", 4, "-o", "deep/er/x"], "is not a folder; make it first"),
    ],
)
def test_bad_requests(source: Path, cli: Callable[..., Any], asked: list[Any], message: str) -> None:
    done = cli("quantize", "--model", source, *asked)
    assert done.code == 2 and message in done.err


def test_a_write_that_is_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that is half written is a damaged shard, and nothing says so."""
    folder = draw_flux(tmp_path / "model")
    whole = quantize(folder, tmp_path / "whole", quant="q4")
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, bytes(data)[: max(1, len(data) // 2)], at))
    cut = quantize(folder, tmp_path / "cut", quant="q4")
    for path in whole.rglob("*.safetensors"):
        assert path.read_bytes() == (cut / path.relative_to(whole)).read_bytes()


def test_a_folder_that_cannot_be_listed_ends_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = draw_flux(tmp_path / "model")
    scandir = os.scandir

    def refused(path: object) -> object:
        if str(path).endswith("tokenizer_2"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(MissingFileError, match="tokenizer_2 cannot be read .*the copy would lack"):
        quantize(folder, tmp_path / "out", quant="q4")
    assert not (tmp_path / "out").exists()


def test_an_empty_partial_folder_is_gone_on_with(tmp_path: Path) -> None:
    """A run that is killed before it has a journal leaves one."""
    (tmp_path / "out.partial").mkdir()
    assert quantize(draw_flux(tmp_path / "model"), tmp_path / "out", quant="q4").is_dir()


def test_a_journal_of_a_run_that_has_finished_is_not_trusted(tmp_path: Path) -> None:
    """Another run finishes between the opening of its journal here and the lock."""
    partial = Partial(tmp_path / "out", "made from this")
    opened = Partial._opened

    def finish_after(self: Partial) -> object:
        file = opened(self)
        (self.folder / JOURNAL).unlink()
        write_json(self.folder / RECORD, {"identity": self.identity})
        self.folder.rename(self.target)
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Partial, "_opened", finish_after)
        with pytest.raises(OutputError, match="has finished"), partial.journal():
            pass
    with pytest.raises(OutputError, match="has finished"), partial.journal():  # it was finished before the opening
        pass
    assert not partial.folder.exists() and partial.is_complete
