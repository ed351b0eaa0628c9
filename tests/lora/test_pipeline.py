"""LoRAs on whole models: chosen when a model is opened, changed while it is warm, and on quantized folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.errors import LoraError, RequestError
from mlx_imagegen.hub.record import RECORD
from mlx_imagegen.layers.linear import unpacked
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.component import Component
from mlx_imagegen.loading.weights import Weights, layers, own_parameters
from mlx_imagegen.lora.merge import SAMPLE_ROWS
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.quantization.quantizer import quantize
from tests.tiny import draw_flux

PICTURE = {"steps": 2, "width": 64, "height": 48, "seed": 3, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_flux(tmp_path_factory.mktemp("lora") / "model")


def draw_lora(
    path: Path, model: Path, seed: int, part: str = "", component: str = "transformer", size: float = 0.05
) -> Path:
    """A LoRA on every linear layer of a component whose name holds `part`."""
    dice = np.random.default_rng(seed)
    tensors = {}
    for name, tensor in open_checkpoint(model / component).items():
        if name.endswith(".weight") and len(tensor.shape) == 2 and part in name and "embed" not in name:
            module = f"{component}.{name.removesuffix('.weight')}"
            for end, shape in (("A", (4, tensor.shape[1])), ("B", (tensor.shape[0], 4))):
                tensors[f"{module}.lora_{end}.weight"] = mx.array(dice.normal(0, size**0.5, shape).astype(np.float32))
    mx.save_safetensors(str(path), tensors)
    return path


@pytest.fixture
def lora(tmp_path: Path, model: Path) -> Callable[..., Path]:
    def draw(name: str = "style", **options: object) -> Path:
        return draw_lora(tmp_path / f"{name}.safetensors", model, len(name), **options)  # type: ignore[arg-type]

    return draw


def picture(pipeline: Pipeline) -> np.ndarray:
    return np.array(pipeline.generate("a red fox", **PICTURE).image)


def weights_of(pipeline: Pipeline) -> dict[str, mx.array]:
    transformer = pipeline.family.components["transformer"].load()
    return {
        f"{path}.{name}": value for path, layer in layers(transformer) for name, value in own_parameters(layer).items()
    }


def test_a_warm_pipeline_equals_a_fresh_one(model: Path, lora: Callable[..., Path]) -> None:
    warm = load(model)
    plain = picture(warm)
    style, other = lora(), lora("another")
    warm.set_lora([style])
    changed = picture(warm)
    assert (changed != plain).any()
    assert (changed == picture(load(model, lora=[style]))).all()
    warm.set_lora([(style, 0.3), other])
    assert (picture(warm) == picture(load(model, lora=[other, (style, 0.3)]))).all(), "the order should not matter"
    warm.set_lora()
    assert (picture(warm) == plain).all()


def test_the_order_of_loras_does_not_change_a_bit(model: Path, lora: Callable[..., Path]) -> None:
    style, other, third = lora(), (lora("another"), 0.5), (lora("the third"), -0.3)
    two = [weights_of(load(model, lora=order)) for order in ([style, other], [other, style])]
    three = [weights_of(load(model, lora=order)) for order in ([style, other, third], [third, other, style])]
    for one, same in (two, three):
        assert all(mx.array_equal(one[name], same[name]) for name in one)


def test_the_same_file_twice_adds_up(model: Path, lora: Callable[..., Path]) -> None:
    style = lora(part="attn.to_q")
    twice, once = weights_of(load(model, lora=[style, (style, 0.5)])), weights_of(load(model, lora=[(style, 1.5)]))
    for name, value in twice.items():
        np.testing.assert_allclose(np.array(value), np.array(once[name]), atol=1e-6)


def test_scale_0_is_the_base_to_the_bit(model: Path, lora: Callable[..., Path]) -> None:
    plain, merged = weights_of(load(model)), weights_of(load(model, lora=[(lora(), 0)]))
    assert all(mx.array_equal(plain[name], merged[name]) for name in plain)


def test_only_touched_layers_are_read_again(
    model: Path, lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = load(model)
    picture(warm)
    read: list[str] = []
    fill = Weights.fill_layer
    monkeypatch.setattr(
        Weights, "fill_layer", lambda self, layer, path, dtype: (read.append(path), fill(self, layer, path, dtype))
    )
    style = lora(part="attn.to_k")
    warm.set_lora([style])
    assert sorted(read) == sorted(
        [f"transformer_blocks.{i}.attn.to_k" for i in range(2)]
        + [f"single_transformer_blocks.{i}.attn.to_k" for i in range(3)]
    )
    read.clear()
    warm.set_lora([style])
    assert not read, "the same again"


def test_what_the_refusal_says_is_taken(model: Path, lora: Callable[..., Path]) -> None:
    warm, style = load(model), lora()
    tensors = mx.load(str(style)) | {f"transformer.unheard.of.lora_{end}.weight": mx.ones((2, 2)) for end in "AB"}
    mx.eval(tensors)
    mx.save_safetensors(str(style), tensors)
    with pytest.raises(LoraError, match="lora_partial=True"):
        warm.set_lora([style])
    with pytest.raises(RequestError, match="lora_partial 'yes': give true or false"):
        warm.set_lora([style], lora_partial="yes")  # type: ignore[arg-type]
    warm.set_lora([style], lora_partial=True)
    assert warm.merge.matches[0].unmatched == {"transformer.unheard.of": "no such module"}


def test_folded_modulation_follows_the_lora(model: Path, lora: Callable[..., Path]) -> None:
    """norm1.linear lies in no loaded module: only the tables made from it can show the change."""
    warm = load(model)
    plain = picture(warm)
    warm.set_lora([lora(part="norm1.linear", size=0.5)])
    assert (picture(warm) != plain).any()


def test_a_text_encoder_lora_changes_what_prompts_mean(model: Path, lora: Callable[..., Path]) -> None:
    for component, part in (("text_encoder", "self_attn"), ("text_encoder_2", "SelfAttention")):
        warm = load(model, resident=True)
        plain = picture(warm)
        warm.set_lora([lora(component=component, part=part, size=1.0)])
        assert (picture(warm) != plain).any(), component


def test_a_file_that_is_written_anew_is_not_read_by_its_former_header(model: Path, lora: Callable[..., Path]) -> None:
    warm = load(model, lora=[lora()], resident=False)
    before = picture(warm)
    draw_lora(lora(), model, 77, size=0.3)  # as a trainer does, under the same name
    with pytest.raises(LoraError, match="was changed or removed since it was opened"):
        picture(warm)  # its stages are read again for every picture
    warm.set_lora([draw_lora(lora(), model, 77, size=0.3)])
    assert (picture(warm) != before).any()


def test_a_file_that_is_gone_can_be_given_up(model: Path, lora: Callable[..., Path]) -> None:
    warm = load(model)
    plain = picture(warm)
    style = lora()
    warm.set_lora([style])
    picture(warm)
    style.unlink()
    warm.set_lora()
    assert (picture(warm) == plain).all()


def test_a_failure_while_changing_leaves_the_former_weights(
    model: Path, lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = load(model, lora=[lora()])
    before = picture(warm)
    calls = iter(range(100))
    fill = Weights.fill_layer

    def failing(self: Weights, layer: object, path: str, dtype: mx.Dtype) -> None:
        if next(calls) == 3:
            raise OSError("the disk went away")
        fill(self, layer, path, dtype)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(OSError, match="went away"):
        patch.setattr(Weights, "fill_layer", failing)
        warm.set_lora([lora("another")])
    assert (picture(warm) == before).all()


def test_record_and_report(model: Path, lora: Callable[..., Path]) -> None:
    style = lora(part="attn.to_q")
    result = load(model, lora=[(style, 0.5)]).generate("a red fox", **PICTURE)
    assert result.record["lora"] == [[str(style), 0.5]]
    assert f"LoRA {style} at 0.5: 5 of 5 modules match" in result.report.notes
    assert "lora" not in load(model).generate("a red fox", **PICTURE).record


def test_packing_while_loading_reports_what_it_leaves_of_the_change(model: Path, lora: Callable[..., Path]) -> None:
    pipeline = load(model, lora=[(lora(), 0.1)], quant="q4")
    notes = " ".join(pipeline.generate("a red fox", **PICTURE).report.notes)
    assert "quantization left" in notes
    survived = pipeline.merge.survived
    assert {f"transformer/transformer_blocks.{i}.attn.to_q" for i in range(2)} <= set(survived)
    assert all(0.5 < share < 1.5 for share in survived.values())
    # Into codes, as lora/source.py has it, most of the same change is lost: see the benchmark.


def test_what_survives_is_measured(model: Path, lora: Callable[..., Path]) -> None:
    """Against the whole weights as they are when packed without and with the LoRA; untouched modules do not count."""
    style = lora()
    tensors = dict(mx.load(str(style)))
    silent = "transformer.transformer_blocks.1.attn.to_q"
    mx.save_safetensors(str(style), tensors | {f"{silent}.lora_B.weight": mx.zeros((64, 4))})
    chosen = [(style, 0.1)]
    without, within = dense(load(model, quant="q4")), load(model, lora=chosen, quant="q4")
    packed, change = dense(within), dense(load(model, lora=chosen))
    plain = dense(load(model))
    shares = {}
    for path, value in packed.items():
        delta, found = np.array(change[path] - plain[path]), np.array(value - without[path])
        if (delta != 0).any() and "norm" not in path:
            shares[f"transformer/{path}"] = float((found * delta).sum() / (delta * delta).sum())
    noted = {path: share for path, share in within.merge.survived.items() if path in shares}
    kept_dense = {path for path in shares if path not in noted}
    assert all(abs(shares[path] - 1) < 0.05 for path in kept_dense), "in 16 bits nearly all is left"
    assert len(noted) > 20 and silent.replace(".", "/", 1) not in within.merge.survived
    for path, share in noted.items():
        whole = len(packed[path.partition("/")[2]]) <= SAMPLE_ROWS
        assert abs(share - shares[path]) < (5e-3 if whole else 0.05), path
    worst = min(within.merge.survived, key=lambda path: within.merge.survived[path])
    (note,) = within.merge.loss_lines()
    assert f"least in {worst}: {within.merge.survived[worst]:.0%}" in note


@pytest.fixture
def quantized(model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(quantized folder, its source)"""
    source = shutil.copytree(model, tmp_path / "source")
    return quantize(source, tmp_path / "q6", quant="q6"), source


def dense(pipeline: Pipeline) -> dict[str, mx.array]:
    """The transformer's weights in float32."""
    out = {}
    for path, layer in layers(pipeline.family.components["transformer"].load()):
        packing = getattr(layer, "packing", None)
        out[path] = unpacked(layer, packing) if packing else layer.get("weight")
    return {path: value for path, value in out.items() if value is not None}


def test_a_lora_on_a_quantized_folder_is_merged_before_packing(
    quantized: tuple[Path, Path], lora: Callable[..., Path], tmp_path: Path
) -> None:
    folder, source = quantized
    style = lora(part="attn.to_q")
    plain, merged = dense(load(folder)), dense(load(folder, lora=[style]))
    before = dense(load(quantize(source, tmp_path / "with", quant="q6", lora=[style])))
    for path, value in merged.items():
        if "attn.to_q" in path:
            assert mx.array_equal(value, before[path]), path
            assert not mx.array_equal(value, plain[path]), path
        else:
            assert mx.array_equal(value, plain[path]), path


def test_the_converter_says_what_packing_left(model: Path, lora: Callable[..., Path], tmp_path: Path) -> None:
    told: list[str] = []
    quantize(model, tmp_path / "q4", quant="q4", lora=[(lora(), 0.1)], on_download=told.append)
    assert any(line.startswith("note: quantization left") and "transformer/" in line for line in told)


def test_a_shifted_bias_is_read_again_with_its_weight(quantized: tuple[Path, Path], lora: Callable[..., Path]) -> None:
    """A folder may keep a bias that makes up for the error of its codes; other codes have another error."""
    folder, _ = quantized
    style = lora(part="attn.to_q")
    path = next((folder / "transformer").glob("*.safetensors"))
    tensors = mx.load(str(path))
    name = "transformer_blocks.0.attn.to_q.bias"
    kept = tensors[name] + 0.0
    mx.eval(list(tensors.values()))
    mx.save_safetensors(str(path), tensors | {name: kept + 1})
    layer = load(folder, lora=[style]).family.components["transformer"].load().transformer_blocks[0].attn.to_q
    assert mx.array_equal(layer.bias, kept.astype(layer.bias.dtype))


def test_calibration_that_a_lora_undoes_is_said(model: Path, lora: Callable[..., Path], tmp_path: Path) -> None:
    picture = {"prompt": "a cat", "steps": 1, "width": 64, "height": 48}
    folder = quantize(model, tmp_path / "calibrated", quant="q4", calibrate=[picture])
    told: list[str] = []
    warm = load(folder, lora=[lora(part="attn.to_q")], on_download=told.append)
    assert [line for line in told if "5 layers are packed again, without the calibration of" in line]
    told.clear()
    warm.set_lora(on_download=told.append)
    plain = quantize(model, tmp_path / "plain", quant="q4")
    load(plain, lora=[lora(part="attn.to_q")], on_download=told.append)
    assert not told


def test_loras_of_the_quantized_folder_stay(
    quantized: tuple[Path, Path], lora: Callable[..., Path], tmp_path: Path
) -> None:
    _, source = quantized
    style, other = lora(part="attn"), lora("another", part="attn.to_k")
    folder = quantize(source, tmp_path / "with", quant="q6", lora=[(style, 0.5)])
    both = dense(load(quantize(source, tmp_path / "both", quant="q6", lora=[(style, 0.5), other])))
    merged = dense(load(folder, lora=[other]))
    for path, value in merged.items():
        np.testing.assert_allclose(
            np.array(value.astype(mx.float32)), np.array(both[path].astype(mx.float32)), atol=1e-6
        )


def test_a_failure_while_changing_keeps_the_quantized_folder_s_own_lora(
    quantized: tuple[Path, Path], lora: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new LoRA touches nothing that is packed, so that it does not ask for the folder's own; the former one did."""
    folder = quantize(quantized[1], tmp_path / "with", quant="q6", lora=[lora(part="attn")])
    warm = load(folder, lora=[lora("another", part="attn.to_k")])
    last = lora("the third", part="proj_out")
    tensors = {key: value for key, value in mx.load(str(last)).items() if key.startswith("transformer.proj_out")}
    mx.save_safetensors(str(last), tensors)
    before = weights_of(warm)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="went away"):
        patch.setattr(Component, "refill", lambda *_: (_ for _ in ()).throw(OSError("the disk went away")))
        warm.set_lora([last])
    after = weights_of(warm)
    assert all(mx.array_equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("gone", [True, False])
def test_the_quantized_folder_s_own_lora_must_be_the_same(
    quantized: tuple[Path, Path], lora: Callable[..., Path], tmp_path: Path, gone: bool
) -> None:
    """The weights that another LoRA touches would lose it, or have it in another form than the rest."""
    style, other = lora(part="attn"), lora("another", part="attn.to_k")
    folder = quantize(quantized[1], tmp_path / "with", quant="q6", lora=[style])
    load(folder)
    style.unlink() if gone else lora(part="attn", size=0.06)
    with pytest.raises(LoraError, match="was made with the LoRA .* has to be merged again"):
        load(folder, lora=[other])


def test_a_warm_quantized_pipeline_goes_back_to_its_codes(
    quantized: tuple[Path, Path], lora: Callable[..., Path]
) -> None:
    warm = load(quantized[0])
    plain = picture(warm)
    warm.set_lora([lora(part="attn")])
    assert (picture(warm) != plain).any()
    warm.set_lora()
    assert (picture(warm) == plain).all()


@pytest.mark.parametrize("recorded", [True, False])
def test_without_the_source_the_command_is_said(
    quantized: tuple[Path, Path], lora: Callable[..., Path], recorded: bool
) -> None:
    folder, source = quantized
    shutil.rmtree(source)
    if not recorded:
        (folder / RECORD).unlink()
    style = lora()
    with pytest.raises(LoraError) as refused:
        load(folder, lora=[(style, 0.7)])
    message = str(refused.value)
    assert "mlx-imagegen quantize" in message and f"--lora {style}:0.7" in message
    assert (str(source) if recorded else "does not say from what") in message
    load(folder, lora=[(style, 0)])  # nothing to merge


def test_a_bias_of_a_packed_layer_needs_no_source(quantized: tuple[Path, Path], tmp_path: Path) -> None:
    folder, source = quantized
    shutil.rmtree(source)
    mx.save_safetensors(
        str(tmp_path / "bias.safetensors"), {"transformer.transformer_blocks.0.attn.to_q.diff_b": mx.ones(64)}
    )
    plain, merged = (
        load(folder, lora=lora).family.components["transformer"].load().transformer_blocks[0].attn.to_q
        for lora in ([], [tmp_path / "bias.safetensors"])
    )
    assert merged.packing is not None and mx.array_equal(merged.weight, plain.weight)
    assert mx.allclose(merged.bias, plain.bias + 1)


def test_an_untouched_quantized_layer_needs_no_source(quantized: tuple[Path, Path], lora: Callable[..., Path]) -> None:
    folder, source = quantized
    stored = json.loads((folder / "transformer" / "config.json").read_text())["quantization"]
    assert "proj_out" not in stored, "this recipe keeps the last layer in 16 bits"
    shutil.rmtree(source)
    style = lora()
    tensors = {key: value for key, value in mx.load(str(style)).items() if key.startswith("transformer.proj_out")}
    mx.save_safetensors(str(style), tensors)
    load(folder, lora=[style]).family.components["transformer"].load()


def test_refill_needs_nothing_of_a_component_that_is_not_loaded(model: Path, lora: Callable[..., Path]) -> None:
    pipeline = load(model)
    pipeline.set_lora([lora()])
    assert not any(isinstance(part, Component) and part.loaded for part in pipeline.family.components.values())


def test_tables_that_are_only_gathered_from_cannot_be_changed(model: Path, tmp_path: Path) -> None:
    """Rows come straight from the file; a change of the table would be lost without a word."""
    (rows, columns) = open_checkpoint(model / "text_encoder_2")["shared.weight"].shape
    shapes = {"A": (2, columns), "B": (rows, 2)}
    tensors = {f"text_encoder_2.shared.lora_{end}.weight": mx.ones(shape) for end, shape in shapes.items()}
    mx.save_safetensors(str(tmp_path / "table.safetensors"), tensors)
    with pytest.raises(LoraError, match="none of its 1 modules"):
        load(model, lora=[tmp_path / "table.safetensors"])
