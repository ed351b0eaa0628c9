"""Text encoders as single files: what ComfyUI's `text_encoders` folder and llama.cpp's GGUF files hold.

Each function gives the layouts of one encoder for the component that it is of a family. Sizes are read off the shapes;
what no shape tells is as published with the family. Must not know: families.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..loading.names import RowRange, slices
from ..loading.single_file import SingleFile, Tensors, count, has, renamed, saved_by_mflux, shape, substitute

Config = Mapping[str, Any]
Fits = Callable[[Config, Config], bool]  # (the encoder's config.json, the diffusion model's)
# llama.cpp's names -> Hugging Face's.
GGUF_DECODER = (
    (r"^token_embd\.", "model.embed_tokens."),
    (r"^output_norm\.", "model.norm."),
    (r"^output\.", "lm_head."),
    (r"^blk\.(\d+)\.", r"model.layers.\1."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.attn_output\.", ".self_attn.o_proj."),
    (r"\.attn_([qk])_norm\.", r".self_attn.\1_norm."),
    (r"\.attn_([qkv])\.", r".self_attn.\1_proj."),
    (r"\.ffn_(up|down|gate)\.", r".mlp.\1_proj."),
)
GGUF_T5 = (
    (r"^token_embd\.", "shared."),
    (r"^enc\.output_norm\.", "encoder.final_layer_norm."),
    (r"^enc\.blk\.(\d+)\.", r"encoder.block.\1."),
    (r"\.attn_norm\.", ".layer.0.layer_norm."),
    (r"\.attn_rel_b\.", ".layer.0.SelfAttention.relative_attention_bias."),
    (r"\.attn_([qkvo])\.", r".layer.0.SelfAttention.\1."),
    (r"\.ffn_norm\.", ".layer.1.layer_norm."),
    (r"\.ffn_gate\.", ".layer.1.DenseReluDense.wi_0."),
    (r"\.ffn_up\.", ".layer.1.DenseReluDense.wi_1."),
    (r"\.ffn_down\.", ".layer.1.DenseReluDense.wo."),
)
MFLUX_T5 = (
    (r"^final_layer_norm\.", "encoder.final_layer_norm."),
    (r"^t5_blocks\.(\d+)\.attention\.", r"encoder.block.\1.layer.0."),
    (r"^t5_blocks\.(\d+)\.ff\.", r"encoder.block.\1.layer.1."),
)
MFLUX_QWEN_2_5 = (
    (r"^encoder\.visual\.", "visual."),
    (r"^encoder\.", "model."),
    (r"\.merger\.mlp_0\.", ".merger.mlp.0."),
    (r"\.merger\.mlp_1\.", ".merger.mlp.2."),
)
COMPUTED = ("inv_freq",)  # how the names of tables end that mflux saves and no module reads
GGUF_QWEN3 = "blk.0.attn_q_norm.weight"
HIGHER_MODEL = r"^model\.(layers|embed_tokens|norm)\."  # ComfyUI's language model
QWEN3_VL_TOWER = "model.visual.deepstack_merger_list.0.norm.weight"  # a tensor of its vision tower
MISTRAL_HEAD, TURNED = 128, re.compile(r"\.attn_[qk]\.")
QWEN_2_5_HEAD = 128  # numbers of an attention head, of every size of the model; no shape tells


def clip_l_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """CLIP-L's text tower, without the projection that other models have."""

    def matches(tensors: Tensors) -> bool:
        """CLIP-G, which has 32 layers, is another model's."""
        layer = "text_model.encoder.layers.{}.layer_norm1.weight"
        return layer.format(0) in tensors and layer.format(30) not in tensors

    def config(tensors: Tensors) -> dict[str, Any]:
        vocabulary, hidden = shape(tensors, "text_model.embeddings.token_embedding.weight")
        return {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "max_position_embeddings": shape(tensors, "text_model.embeddings.position_embedding.weight")[0],
            "num_hidden_layers": count(tensors, r"text_model\.encoder\.layers\.(\d+)\."),
            "intermediate_size": shape(tensors, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        }

    rename = renamed(drop=("text_projection.weight", "position_ids"))
    prefixes = ("", "text_encoders.clip_l.transformer.")
    return (
        SingleFile(component, "CLIP-L", matches, rename, config, prefixes, fits=fits, dense=r"\.position_embedding$"),
    )


def t5_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """T5 v1.1's encoder."""

    def config(tensors: Tensors) -> dict[str, Any]:
        table = next(name for name in ("shared.weight", "encoder.embed_tokens.weight") if name in tensors)
        attention = "encoder.block.0.layer.0.SelfAttention"
        buckets, heads = shape(tensors, f"{attention}.relative_attention_bias.weight")
        inner, width = shape(tensors, f"{attention}.q.weight")
        return {
            "vocab_size": shape(tensors, table)[0],
            "d_model": width,
            "d_kv": inner // heads,
            "num_heads": heads,
            "relative_attention_num_buckets": buckets,
            "d_ff": shape(tensors, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight")[0],
            "num_layers": count(tensors, r"encoder\.block\.(\d+)\."),
        }

    plain = has("encoder.block.0.layer.1.DenseReluDense.wi_1.weight")
    prefixes = ("", "text_encoders.t5xxl.transformer.")
    return (
        SingleFile(component, "T5 v1.1", plain, config=config, prefixes=prefixes, fits=fits),
        _in_gguf(component, "T5 v1.1", has("enc.blk.0.ffn_gate.weight"), GGUF_T5, config, fits),
    )


def mflux_t5_file(component: str) -> SingleFile:
    """T5's encoder as mflux saves it: the first block's table of distances stands in every block."""

    def rename(name: str) -> Iterator[RowRange]:
        if "relative_attention_bias" in name and not name.startswith("t5_blocks.0."):
            return
        yield RowRange(substitute(name, MFLUX_T5))

    matches = has("t5_blocks.0.attention.SelfAttention.q.weight")
    return saved_by_mflux(component, "T5 v1.1", matches, rename, r"\.relative_attention_bias$")


def qwen2_5_vl_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """Qwen2.5-VL, with its vision tower or (GGUF) without."""

    def config(tensors: Tensors) -> dict[str, Any]:
        layer = "model.layers.0.self_attn"
        return _decoder_config(tensors) | {
            "num_attention_heads": shape(tensors, f"{layer}.q_proj.weight")[0] // QWEN_2_5_HEAD,
            "num_key_value_heads": shape(tensors, f"{layer}.k_proj.weight")[0] // QWEN_2_5_HEAD,
        }

    plain = has("model.layers.0.self_attn.k_proj.bias", "model.norm.weight")
    prefixes = ("", "text_encoders.qwen25_7b.transformer.")
    return (
        SingleFile(component, "Qwen2.5-VL", plain, config=config, prefixes=prefixes, fits=fits),
        _in_gguf(component, "Qwen2.5-VL", has("blk.0.attn_k.bias", "output_norm.weight"), GGUF_DECODER, config, fits),
    )


def mflux_qwen2_5_vl_file(component: str) -> SingleFile:
    """Qwen2.5-VL as mflux saves it, without the head, which no picture needs."""
    matches = has("encoder.layers.0.self_attn.k_proj.bias", "encoder.norm.weight")
    rename = renamed(*MFLUX_QWEN_2_5, drop=COMPUTED)
    return saved_by_mflux(component, "Qwen2.5-VL", matches, rename, r"^encoder\.visual\.")


def qwen3_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """Qwen3 of any size."""

    plain = has("model.layers.0.self_attn.q_norm.weight", "model.norm.weight", without=(QWEN3_VL_TOWER,))
    prefixes = ("", "text_encoders.qwen3_4b.transformer.", "text_encoders.qwen3_8b.transformer.")
    gguf = has(GGUF_QWEN3, "output_norm.weight")
    return (
        SingleFile(component, "Qwen3", plain, config=_qwen3_config, prefixes=prefixes, fits=fits),
        _in_gguf(component, "Qwen3", gguf, GGUF_DECODER, _qwen3_config, fits, "qwen3"),
    )


def mflux_qwen3_file(component: str) -> SingleFile:
    """Qwen3, or Qwen3-VL without its vision tower, as mflux saves them."""
    matches = has("layers.0.self_attn.q_norm.weight", "embed_tokens.weight")
    return saved_by_mflux(component, "Qwen3", matches, renamed((r"^", "model."), drop=COMPUTED))


def mflux_qwen3_vl_file(component: str) -> SingleFile:
    """Qwen3-VL with its vision tower, which takes numbers."""
    matches = has("language_model.layers.0.self_attn.q_norm.weight", "visual.patch_embed.proj.weight")
    rename = renamed((r"^", "model."), (r"^model\.lm_head\.", "lm_head."), drop=COMPUTED)
    return saved_by_mflux(component, "Qwen3-VL", matches, rename, r"^visual\.")


def qwen3_vl_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """Qwen3-VL with its vision tower, in its repository's names or in ComfyUI's, whose language model is one level
    higher. Without the tower the latter are the names of Qwen3, another model of the same sizes. In GGUF it has none,
    and the file says which of the two it is."""

    def config(tensors: Tensors) -> dict[str, Any]:
        text = slices(tensors, rename)
        position, merged = (shape(text, f"model.visual.{name}.weight") for name in ("pos_embed", "merger.linear_fc2"))
        vision = {"num_position_embeddings": position[0], "hidden_size": position[1], "out_hidden_size": merged[0]}
        vision["depth"] = count(text, r"model\.visual\.blocks\.(\d+)\.")
        return {"text_config": _qwen3_config(text, "model.language_model"), "vision_config": vision}

    def text_config(tensors: Tensors) -> dict[str, Any]:
        return {"text_config": _qwen3_config(tensors, "model.language_model")}

    prefixes, higher = ("", "text_encoders.qwen3vl_8b.transformer."), (HIGHER_MODEL, r"model.language_model.\1.")
    rename = renamed(higher)
    plain = [
        SingleFile(component, "Qwen3-VL", has(norm, QWEN3_VL_TOWER), rename, config, prefixes, fits=fits)
        for norm in ("model.language_model.norm.weight", "model.norm.weight")
    ]
    rules = (*GGUF_DECODER, higher)
    return (*plain, _in_gguf(component, "Qwen3-VL", has(GGUF_QWEN3), rules, text_config, fits, "qwen3vl"))


def qwen3_vl_text_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """Qwen3-VL, with its vision tower or without. In ComfyUI's names without the tower it is a Qwen3, and not taken."""
    plain = [
        _multimodal(component, "Qwen3-VL", before, "self_attn.q_norm.weight", (), fits, needs)
        for before, needs in (("model.language_model.", ()), ("model.", (QWEN3_VL_TOWER,)))
    ]
    return (*plain, _in_gguf(component, "Qwen3-VL", has(GGUF_QWEN3), GGUF_DECODER, _width, fits, "qwen3vl"))


def mistral_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """Mistral Small 3, without its vision tower. ComfyUI's file may lack the last layers, so that none are counted."""
    others = ("model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.q_proj.bias")
    return (
        _multimodal(component, "Mistral Small 3", "model.", "self_attn.o_proj.weight", others, fits),
        _mistral_in_gguf(component, fits),
    )


def _mistral_in_gguf(component: str, fits: Fits) -> SingleFile:
    """llama.cpp turns neighbouring rows of queries and keys as pairs, Hugging Face a head's halves with each other."""

    def rename(name: str) -> Iterator[RowRange]:
        head = MISTRAL_HEAD if TURNED.search(name) else 0
        yield RowRange(substitute(name, GGUF_DECODER), interleaved=head)

    matches = has("blk.0.attn_output.weight", "token_embd.weight", without=(GGUF_QWEN3, "blk.0.attn_q.bias"))
    config, title = (lambda tensors: _width(slices(tensors, rename))), "Mistral Small 3 in llama.cpp's names"
    return SingleFile(component, title, matches, rename, config, fits=fits)


def _multimodal(
    component: str,
    title: str,
    before: str,
    sign: str,
    without: tuple[str, ...],
    fits: Fits,
    needs: tuple[str, ...] = (),
) -> SingleFile:
    """A language model whose published config.json has its numbers in `text_config`; the width is for `fits` alone."""
    table = f"{before}embed_tokens.weight"
    return SingleFile(
        component, title, has(table, f"{before}layers.0.{sign}", *needs, without=without),
        config=lambda tensors: {"hidden_size": shape(tensors, table)[1]}, fits=fits,
    )  # fmt: skip


def _width(tensors: Tensors) -> dict[str, Any]:
    return {"hidden_size": shape(tensors, "model.embed_tokens.weight")[1]}


def _qwen3_config(tensors: Tensors, model: str = "model") -> dict[str, Any]:
    layer = f"{model}.layers.0.self_attn"
    head = shape(tensors, f"{layer}.q_norm.weight")[0]
    return _decoder_config(tensors, model) | {
        "head_dim": head,
        "num_attention_heads": shape(tensors, f"{layer}.q_proj.weight")[0] // head,
        "num_key_value_heads": shape(tensors, f"{layer}.k_proj.weight")[0] // head,
    }


def _decoder_config(tensors: Tensors, model: str = "model") -> dict[str, Any]:
    vocabulary, hidden = shape(tensors, f"{model}.embed_tokens.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shape(tensors, f"{model}.layers.0.mlp.up_proj.weight")[0],
        "num_hidden_layers": count(tensors, rf"{re.escape(model)}\.layers\.(\d+)\."),
    }


def _in_gguf(
    component: str,
    title: str,
    matches: Callable[[Tensors], bool],
    rules: tuple[tuple[str, str], ...],
    config: Callable[[Tensors], dict[str, Any]],
    fits: Fits,
    architecture: str = "",
) -> SingleFile:
    rename = renamed(*rules)
    return SingleFile(
        component, f"{title} in llama.cpp's names", matches, rename, lambda tensors: config(slices(tensors, rename)),
        fits=fits, architecture=architecture,
    )  # fmt: skip
