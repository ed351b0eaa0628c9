"""Recipes: which bits every layer of the published models gets, what that comes to, and what is refused."""

from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_imagegen.errors import QuantizationError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.layers.linear import Linear, Packing
from mlx_imagegen.loading.weights import WeightTransforms, layers, own_parameters
from mlx_imagegen.packing.recipes import COMPONENTS, Recipe, fitted, from_the_end, read_recipe, recipe_names
from mlx_imagegen.pipeline import load
from mlx_imagegen.quantization.conversion_plan import plan_conversion

FLUX_DEV = FluxConfig(
    attention_head_dim=128, guidance_embeds=True, in_channels=64, joint_attention_dim=4096, num_attention_heads=24,
    num_layers=19, num_single_layers=38, pooled_projection_dim=768,
)  # fmt: skip
# (path, layers) -> [rows, columns]: the denoisers' linear layers as published
QWEN_IMAGE = {
    ("img_in", 0): (3072, 64), ("txt_in", 0): (3072, 3584), ("proj_out", 0): (64, 3072),
    **{("transformer_blocks.{}.attn." + name, 60): (3072, 3072) for name in (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )},
    **{("transformer_blocks.{}." + name, 60): shape for kind in ("img", "txt") for name, shape in (
        (f"{kind}_mlp.net.0.proj", (12288, 3072)), (f"{kind}_mlp.net.2", (3072, 12288)),
    )},
}  # fmt: skip
HIDREAM = {
    ("model.x_embedder.proj1", 0): (1024, 3072), ("model.x_embedder.proj2", 0): (4096, 1024),
    ("model.final_layer2.linear", 0): (3072, 4096),
    **{("model.language_model.layers.{}." + name, 36): shape for name, shape in (
        ("self_attn.q_proj", (4096, 4096)), ("self_attn.k_proj", (1024, 4096)), ("self_attn.v_proj", (1024, 4096)),
        ("self_attn.o_proj", (4096, 4096)), ("mlp.gate_proj", (12288, 4096)), ("mlp.up_proj", (12288, 4096)),
        ("mlp.down_proj", (4096, 12288)),
    )},
}  # fmt: skip
FAMILIES = ("flux1", "qwen_image", "hidream_o1")


def bits(recipe: Recipe, component: str, path: str, depth: int = 60, columns: int = 3072) -> int:
    packing = recipe.packing(component, path, (3072, columns), depth)
    return packing.bits if packing else 16


def test_the_three_sizes_are_there_for_every_family() -> None:
    assert recipe_names() == ["q4", "q6", "q8"]
    for name in recipe_names():
        for family in FAMILIES:
            assert read_recipe(name, family).keep == ("vae",)
            assert bits(read_recipe(name, family), "vae", "decoder.mid_block.attentions.0.to_q") == 16


@pytest.mark.parametrize("quant", ["q8", "q6", "q4"])
def test_what_is_known_to_show_in_pictures_stays_high(quant: str) -> None:
    flux, qwen, hidream = (read_recipe(quant, family) for family in FAMILIES)
    for path in ("x_embedder", "context_embedder", "time_text_embed.guidance_embedder.linear_1", "proj_out"):
        assert bits(flux, "transformer", path) == 16, path
    for path in ("transformer_blocks.7.norm1.linear", "transformer_blocks.7.norm1_context.linear", "norm_out.linear"):
        assert bits(flux, "transformer", path) == 8, path
    assert bits(flux, "transformer", "single_transformer_blocks.7.norm.linear") == 8
    for kind in ("img", "txt"):
        assert bits(qwen, "transformer", f"transformer_blocks.30.{kind}_mod.1") == 8
    for path in ("img_in", "txt_in", "time_text_embed.timestep_embedder.linear_2", "proj_out"):
        assert bits(qwen, "transformer", path) == 16, path
    assert bits(qwen, "text_encoder", "model.layers.5.mlp.down_proj") == 8
    for path in ("model.x_embedder.proj1", "model.t_embedder1.mlp.0", "model.final_layer2.linear"):
        assert bits(hidream, "transformer", path) == 16, path
    for layer in (0, 1, 34, 35):
        assert bits(hidream, "transformer", f"model.language_model.layers.{layer}.mlp.up_proj", 36) == 8
    general = int(quant[1])
    assert bits(hidream, "transformer", "model.language_model.layers.2.mlp.up_proj", 36) == general
    assert bits(hidream, "transformer", "model.language_model.layers.11.mlp.up_proj", 36) == general
    assert bits(flux, "transformer", "single_transformer_blocks.7.proj_mlp") == general
    assert bits(qwen, "transformer", "transformer_blocks.30.img_mlp.net.0.proj") == general


def test_attention_values_and_feed_forward_outputs_get_more_at_four_bits() -> None:
    flux, qwen, hidream = (read_recipe("q4", family) for family in FAMILIES)
    assert bits(flux, "transformer", "transformer_blocks.3.attn.add_v_proj") > 4
    assert bits(flux, "transformer", "transformer_blocks.3.ff_context.net.2") > 4
    assert bits(qwen, "transformer", "transformer_blocks.3.attn.to_v") > 4
    assert bits(qwen, "transformer", "transformer_blocks.3.txt_mlp.net.2") > 4
    assert bits(hidream, "transformer", "model.language_model.layers.9.self_attn.v_proj", 36) > 4


@pytest.mark.parametrize(("quant", "at_most"), [("q8", 9.2e9), ("q6", 7.1e9), ("q4", 5.3e9)])
def test_what_flux_holds_in_the_loop(quant: str, at_most: float) -> None:
    """On a GPU, at 16 bits where nothing is packed."""
    recipe, total = read_recipe(quant, "flux1"), 0
    for path, layer in layers(FluxTransformer(FLUX_DEV)):
        if isinstance(layer, Linear):
            depth = 38 if path.startswith("single") else 19
            packing = recipe.packing("transformer", path, layer.weight.shape, depth)
            if packing:
                layer.pack(packing)
        values = own_parameters(layer).values()
        total += sum(value.size * (4 if value.dtype == mx.uint32 else 2) for value in values)
    assert 0.9 * at_most < total < at_most


@pytest.mark.parametrize(
    ("quant", "family", "low", "high"),
    [
        ("q8", "qwen_image", 8.5, 8.6), ("q6", "qwen_image", 6.5, 6.6), ("q4", "qwen_image", 4.9, 5.05),
        ("q8", "hidream_o1", 8.5, 8.6), ("q6", "hidream_o1", 6.6, 6.8), ("q4", "hidream_o1", 4.9, 5.1),
    ],
)  # fmt: skip
def test_bits_a_weight_of_the_published_models(quant: str, family: str, low: float, high: float) -> None:
    """In the loop, 60 and 36 layers deep: modulation, text encoder and embedding tables aside."""
    recipe = read_recipe(quant, family)
    shapes = QWEN_IMAGE if family == "qwen_image" else HIDREAM
    bits = count = 0.0
    for (path, depth), shape in shapes.items():
        for layer in range(max(1, depth)):
            packing = recipe.packing("transformer", path.format(layer), shape, depth)
            bits += shape[0] * shape[1] * (packing.bits_per_weight if packing else 16)
            count += shape[0] * shape[1]
    assert low < bits / count < high


def test_a_small_models_ends_are_as_low_as_the_rest() -> None:
    recipe = read_recipe("q4", "hidream_o1")
    for depth, expected in ((6, 4), (11, 4), (12, 8), (36, 8)):
        for layer in (0, 1, depth - 2, depth - 1):
            path = f"model.language_model.layers.{layer}.mlp.up_proj"
            assert bits(recipe, "transformer", path, depth) == expected, (depth, layer)


def test_modulators_are_packed_too() -> None:
    recipe = read_recipe("q4", "flux1")
    packed = [
        recipe.packing("transformer", path, layer.weight.shape, 19)
        for path, layer in layers(FluxModulators(FLUX_DEV))
        if isinstance(layer, Linear) and not path.startswith("time_text_embed")
    ]
    assert len(packed) == 2 * 19 + 38 + 1 and set(packed) == {Packing(8, 64)}


@pytest.mark.parametrize(("columns", "expected"), [(128, 64), (96, 32), (32, 32), (80, None), (48, None), (3072, 64)])
def test_columns_that_are_no_whole_groups(columns: int, expected: int | None) -> None:
    packing = fitted(Packing(4, 64), (8, columns))
    assert (packing and packing.group_size) == expected


def test_layers_counted_from_the_end() -> None:
    assert (
        from_the_end("model.language_model.layers.35.mlp.up_proj", 36) == "model.language_model.layers.-1.mlp.up_proj"
    )
    assert from_the_end("proj_out", 0) == "proj_out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "bits = 7\n[[flux1]]\nmatch = '*'",
            r"bits 7 is not possible; MLX's affine packing has 2, 3, 4, 5, 6, 8, or 16",
        ),
        ("bits = 4\ngroup_size = 48\n[[flux1]]\nmatch = '*'", "group_size 48"),
        ("bits = 4\nmode = 'fp4'\n[[flux1]]\nmatch = '*'", "mode 'fp4'"),
        ("bits = 4\n[[flux1]]\nbits = 8", "no 'match'"),
        ("bits = 4\n[[flux1]]\nmatch = '*'\nbit = 8", "'bit' is not known"),
        ("bits = 4\nsreach = true\n[[flux1]]\nmatch = '*'", "'sreach' is not known"),
        ("bits = 4\n[[qwen_image]]\nmatch = '*'", "no rows for the family flux"),
        ("bits = ", "not a TOML file"),
        ("[[flux1]]\nmatch = 'x'\nbits = 8", "bits None"),
        ("bits = 4\n[[flux1]]\nmatch = '*'\ndepth = 'deep'", "depth 'deep' is no number"),
        ("bits = 4\n[[flux1]]\nmatch = '*'\ndepth = -1", "depth -1 is no number"),
        ("bits = 4\n[[flux1]]\nmatch = '*'\ndepth = true", "depth True is no number"),
        ("bits = 4\nkeep = 5\n[[flux1]]\nmatch = '*'", "keep 5 is not possible; give a glob"),
        ("bits = 4\nkeep = 'vea'\n[[flux1]]\nmatch = '*'", "keep 'vea' is no part of a model; there are .*, vae"),
        ("bits = 4\n[[flux1]]\nmatch = [1]", r"match \[1\] is not possible; give a glob"),
        ("bits = 4.0\n[[flux1]]\nmatch = '*'", "bits 4.0 is not possible"),
        ("bits = 4\ngroup_size = 32.0\n[[flux1]]\nmatch = '*'", "group_size 32.0 is not possible"),
        ("bits = 4\nmode = ['affine']\n[[flux1]]\nmatch = '*'", "is not one of MLX's"),
        ("bits = 4\nsearch = 'no'\n[[flux1]]\nmatch = '*'", "search 'no' is not possible"),
        ("bits = 4\nflux = [4]", "no rows for the family flux"),
        ("bits = 4\nmode = 'mxfp4'\ngroup_size = 64\n[[flux1]]\nmatch = '*'", "mxfp4 packing has 32"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(QuantizationError, match=message):
        read_recipe(str(path), "flux1")


@pytest.mark.parametrize("row", ["keep = '{}'", "mode = '{}'", "depth = '{}'", "{} = 1", "bits = '{}'"])
def test_a_refusal_quotes_no_more_than_fits_a_line(tmp_path: Path, row: str) -> None:
    (tmp_path / "mine.toml").write_text(f"{row.format('y' * 5000)}\n[[flux1]]\nmatch = '*'")
    with pytest.raises(QuantizationError) as caught:
        read_recipe(str(tmp_path / "mine.toml"), "flux1")
    assert len(str(caught.value).replace(str(tmp_path), "")) <= 400


def test_one_glob_needs_no_list(tmp_path: Path) -> None:
    """Taken letter by letter, its * would drop every tensor."""
    path = tmp_path / "mine.toml"
    path.write_text("bits = 4\nkeep = 'vae'\ndrop = '*/lm_head.*'\n[[flux1]]\nmatch = '*'")
    recipe = read_recipe(str(path), "flux1")
    assert recipe.keep == ("vae",)
    assert recipe.drops("text_encoder", "lm_head.weight") and not recipe.drops("transformer", "proj_out.weight")


def test_what_is_kept_may_be_a_glob(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("bits = 4\nkeep = 'text_*'\n[[flux1]]\nmatch = '*'")
    recipe = read_recipe(str(path), "flux1")
    assert [bits(recipe, part, "x") for part in ("text_encoder", "text_encoder_2", "transformer")] == [16, 16, 4]
    assert not recipe.rounds_to_16_bits("text_encoder_2") and recipe.rounds_to_16_bits("transformer")


def test_the_parts_that_can_be_kept_are_the_families_own() -> None:
    found = set()
    for name in ("flux-demo", "qwen-demo", "hidream-demo"):
        manifest = manifests()[name]
        assert manifest.bundled is not None
        found |= open_family(manifest, manifest.bundled, WeightTransforms()).weights.keys()
    assert found == set(COMPONENTS)


def test_a_row_that_fits_nothing_is_told(tmp_path: Path, flux_folder: Path) -> None:
    """Misspelt, it would leave a layer at the general bits without a word."""
    path = tmp_path / "mine.toml"
    path.write_text("bits = 4\n[[flux1]]\nmatch = ['transfomer/*', '*.attn.to_v']\nbits = 8\n")
    notes = [note for note in plan_conversion(flux_folder, str(path)).notes if "no layer" in note]
    assert notes == [f"the recipe {path}: 'transfomer/*' fits no layer of this model"]
    told: list[str] = []
    load(flux_folder, quant=str(path), on_download=told.append)
    assert told == [f"note: {note}" for note in notes]


@pytest.mark.parametrize("name", ["flux-demo", "qwen-demo", "hidream-demo", "flux-dev", "qwen-image", "hidream-o1"])
@pytest.mark.parametrize("quant", ["q8", "q6", "q4"])
def test_every_row_of_ours_fits_something(name: str, quant: str) -> None:
    manifest = manifests()[name]
    with nullcontext(manifest.bundled) if manifest.bundled else shape_only_folder(manifest) as folder:
        weights = open_family(manifest, folder, WeightTransforms()).weights
        assert read_recipe(quant, manifest.family).unused_rows(weights) == []


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    with pytest.raises(QuantizationError, match="q4, q6, q8"):
        read_recipe("q3", "flux1")


@pytest.mark.parametrize(("quant", "t5"), [("q8", 8), ("q6", 8), ("q4", 6)])
def test_text_encoders_have_rows_of_their_own(quant: str, t5: int) -> None:
    flux, qwen = read_recipe(quant, "flux1"), read_recipe(quant, "qwen_image")
    assert bits(flux, "text_encoder", "encoder.layers.3.mlp.fc1", 12) == 16  # CLIP
    assert bits(flux, "text_encoder_2", "encoder.block.3.layer.1.DenseReluDense.wo", 24) == t5
    assert bits(qwen, "text_encoder", "layers.5.self_attn.q_proj", 28) == 8
    for family in FAMILIES:
        assert read_recipe(quant, family).drops("text_encoder", "lm_head.weight")
        assert not read_recipe(quant, family).drops("transformer", "proj_out.weight")


@pytest.mark.parametrize("quant", [6, None, Path("mine.toml"), ["q4"]])
def test_a_recipe_is_called_by_text(quant: object) -> None:
    with pytest.raises(QuantizationError, match="give a recipe's name"):
        read_recipe(quant, "flux1")  # type: ignore[arg-type]


def test_an_edited_recipe_is_read_anew_and_remembered_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for number in (4, 8):
        Path("mine.toml").write_text(f"bits = {number}\n[[flux1]]\nmatch = '*'\n")
        found.append(read_recipe("mine.toml", "flux1"))
    assert [bits(recipe, "transformer", "proj_out") for recipe in found] == [4, 8]
    assert found[0].digest != found[1].digest
    assert found[0].name == str(tmp_path / "mine.toml") and read_recipe("q4", "flux1").name == "q4"
