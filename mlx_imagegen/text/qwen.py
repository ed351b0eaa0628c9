"""The Qwen language model: the text encoder of Qwen-Image (Qwen2.5-VL), of Z-Image and FLUX.2 klein (Qwen3), of
Qwen-Image-2.1 and FLUX.3 (Qwen3-VL), and the whole body of HiDream-O1 (Qwen3-VL); and Mistral's, FLUX.2 dev's.

In: embeddings [B, L, D], rope tables, perhaps keys and values of a prefix. Out: features [B, L, D] after the last norm,
the states after chosen layers, or the prefix's keys and values. The config says which one it is: Qwen2.5 has biases on
q, k and v; Qwen3 norms q and k head by head, Mistral does neither; the VL models have three position axes, interleaved
in Qwen3-VL. Embedding rows are the caller's: they are gathered from the file, so that the table (up to 1.3 GB) is never
loaded.
Must not know: prompts, templates, pictures, what is generated.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import ConfigError
from ..escaping import quoted
from ..layers.activation import swiglu
from ..layers.attention import KeyValues, attend, prefixed, split_heads
from ..layers.blocks import AfterFirstBlock
from ..layers.fused import residual_sum
from ..layers.linear import Linear
from ..layers.norm import RMSNorm
from ..layers.rope import turned
from ..layers.sharing import Cuts, channels, columns, heads, rows
from ..loading.config import HEADS, LAYERS, MANY, POSITIVE, Config, read_table
from ..loading.names import RowRange
from ..precision import ROPE_DTYPE, on_gpu

Rope = tuple[mx.array, mx.array]  # cos, sin: [L, head_dim / 2]

# What transformers 4 writes into every text_config, for generation and training; none of it changes a forward pass.
UNUSED = frozenset(
    """
    add_cross_attention attention_dropout bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id id2label initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length
    max_position_embeddings max_window_layers min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix problem_type
    pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    sliding_window suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tie_word_embeddings tokenizer_class top_k top_p torchscript typical_p use_bfloat16 use_cache
    """.split()
)
# Next to the language model's own fields in files that have no text_config.
MULTIMODAL = frozenset(
    "image_token_id video_token_id vision_config vision_end_token_id vision_start_token_id vision_token_id".split()
)

PREFIX = re.compile(r"^((model|language_model)\.)*")
TEXT_ONLY = ("qwen3", "mistral")  # model types without a vision tower's positions


@dataclass(frozen=True)
class QwenConfig(Config):
    """The language model's part of config.json; read it with `read_config`."""

    IGNORED: ClassVar[frozenset[str]] = UNUSED
    ONLY: ClassVar[Mapping[str, object]] = {"hidden_act": "silu", "use_sliding_window": False}

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_attention_heads: Annotated[int, HEADS]
    num_hidden_layers: Annotated[int, LAYERS]
    num_key_value_heads: Annotated[int, HEADS]
    rms_norm_eps: Annotated[float, POSITIVE]
    rope_theta: Annotated[float, POSITIVE]
    vocab_size: Annotated[int, MANY]
    mrope_section: tuple[int, ...] = ()  # text-only models have one position axis
    hidden_act: str = "silu"
    head_dim: int | None = None
    attention_bias: bool = False
    use_sliding_window: bool = False
    layer_types: tuple[str, ...] = ()

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rotary_size(self) -> int:
        """Of each head, how many numbers turn with the position."""
        return self.head_size

    @property
    def third_generation(self) -> bool:
        return self.model_type.startswith("qwen3")

    @property
    def input_biases(self) -> bool:
        """Qwen2.5's code gives q, k and v biases whatever the config says."""
        return self.attention_bias or self.model_type.startswith("qwen2")

    def misfits(self) -> Iterator[tuple[str, str]]:
        vision = self.model_type.startswith(("qwen2_5_vl", "qwen3_vl"))
        if not vision and self.model_type not in TEXT_ONLY:
            yield "model_type", "a Qwen2.5-VL, Qwen3-VL, Qwen3 or Mistral language model"
        if self.num_attention_heads % self.num_key_value_heads:
            yield "num_attention_heads", f"a multiple of num_key_value_heads ({self.num_key_value_heads})"
        if self.head_size % 2 or not self.head_size:
            yield "hidden_size" if self.head_dim is None else "head_dim", "one with an even number for each head"
        if set(self.layer_types) - {"full_attention"}:  # no published model has sliding windows
            yield "layer_types", "full_attention in every layer"
        sections = (len(self.mrope_section), 2 * sum(self.mrope_section))
        if sections != ((3, self.head_size) if vision else (0, 0)):
            half = f"three numbers that fill half a head ({self.head_size // 2})"
            yield "mrope_section", half if vision else "nothing (the model has no vision tower)"


HEAD = "lm_head."  # how the names of tensors begin that write words: nothing here reads them
STOPS = ("<|im_end|>", "<|endoftext|>")  # the tokens that end an answer


def read_config(data: dict[str, Any], where: Path) -> QwenConfig:
    """From a config.json of Qwen2.5-VL, Qwen3-VL, Qwen3 or Mistral, old (all at the top) or new (text_config,
    rope_parameters)."""
    flat = {key: value for key, value in data.items() if key not in MULTIMODAL}
    text = dict(read_table(data, "text_config", where) or flat)
    rope = read_table(text, "rope_scaling", where) | read_table(text, "rope_parameters", where)
    text = {key: value for key, value in text.items() if key not in ("rope_scaling", "rope_parameters")}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ConfigError(
            f"{where}: rope type {quoted(kind)} is not known to this port; Qwen2.5-VL and Qwen3-VL have 'default'."
        )
    if "rope_theta" in rope:
        text["rope_theta"] = rope["rope_theta"]
    if "mrope_section" in rope:
        text["mrope_section"] = rope["mrope_section"]
    return QwenConfig.read(text, where)


def mrope(positions: np.ndarray, config: QwenConfig) -> Rope:
    """positions [3, L] (time, row, column; equal for text) -> cos and sin [L, rotary_size / 2].

    The angle is a float32 product, as in transformers: at position 4096 that is 2e-4 away from the true one.
    """
    half = config.rotary_size // 2
    frequencies = config.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
    angle = positions[_axes(config)].T.astype(np.float32) * frequencies.astype(np.float32)  # [L, half]
    angle = angle.astype(np.float64)
    return mx.array(np.cos(angle), ROPE_DTYPE), mx.array(np.sin(angle), ROPE_DTYPE)


def _axes(config: QwenConfig) -> np.ndarray:
    """For each frequency, the axis whose position turns it: runs in Qwen2.5; taking turns in Qwen3, time last as
    well."""
    if not config.mrope_section:
        return np.zeros(config.rotary_size // 2, np.int64)
    if not config.third_generation:
        return np.repeat(np.arange(3), config.mrope_section)
    axes = np.zeros(sum(config.mrope_section), np.int64)
    for axis in (1, 2):
        axes[axis : 3 * config.mrope_section[axis] : 3] = axis
    return axes


def rotate_halves(x: mx.array, rope: Rope) -> mx.array:
    """x [B, H, L, D], channel i turning with channel i + D/2, in float32; back in x's dtype."""
    cos, sin = rope
    if on_gpu():  # as one kernel
        halves = x.reshape(*x.shape[:-1], 2, -1)
        signs = mx.array([[-1.0], [1.0]], ROPE_DTYPE)
        return turned(halves, halves[..., ::-1, :], cos[:, None], sin[:, None], signs).reshape(x.shape)
    first, second = mx.split(x.astype(ROPE_DTYPE), 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def text_positions(
    ids: Sequence[int], image_token: int | None = None, grids: Iterable[tuple[int, int]] = ()
) -> np.ndarray:
    """[3, L]: text counts up on all axes; a picture's run of `image_token` stands at one time, spread over its (merged)
    grid of rows and columns; what follows goes on after the largest number used."""
    columns: list[np.ndarray] = []
    left, index, start = iter(grids), 0, 0
    while index < len(ids):
        if ids[index] == image_token:
            grid = np.indices(next(left)).reshape(2, -1)
            columns.append(np.concatenate([np.zeros((1, grid.shape[1]), np.int64), grid]) + start)
        else:
            columns.append(np.full((3, 1), start))
        start = int(columns[-1].max()) + 1
        index += columns[-1].shape[1]
    return np.concatenate(columns, axis=1)


def from_published(name: str) -> Iterable[RowRange]:
    """A language model's tensor as any version of transformers saves it: `model.`, `model.language_model.` or
    `language_model.model.` before the name."""
    yield RowRange(PREFIX.sub("", name))


def padded_mask(length: int, total: int) -> mx.array:
    """[1, 1, total, total]: causal, and nothing attends to the padding that follows `length` tokens."""
    places = mx.arange(total)
    return ((places[None] <= places[:, None]) & (places[None] < length))[None, None]


def unread_tensors(config: QwenConfig, layers: int) -> tuple[str, ...]:
    """How the names of tensors begin that the states after `layers` layers do not need."""
    return (*(f"layers.{index}." for index in range(layers, config.num_hidden_layers)), "norm.", HEAD)


class LanguageModel(nn.Module):
    def __init__(self, config: QwenConfig, layers: int | None = None):
        """`layers`: so many alone, and no last norm, where nothing but `states` is asked for."""
        super().__init__()
        self.layers = [DecoderLayer(config) for _ in range(layers or config.num_hidden_layers)]
        if layers is None:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(
        self,
        x: mx.array,
        rope: Rope,
        *,
        mask: mx.array | str | None = "causal",
        prefix: Sequence[KeyValues] | None = None,
    ) -> mx.array:
        """x's dtype is the residual stream's. `prefix`: what `keys_values` gave for the tokens before x."""
        for index, layer in enumerate(self.layers):
            x, _ = layer(x, rope, mask, prefix[index] if prefix else None)
        return self.norm(x)

    def continued(self, x: mx.array, rope: Rope, kept: Sequence[KeyValues] | None) -> tuple[mx.array, list[KeyValues]]:
        """The features of x, which follows what `kept` is of, and the keys and values of both, evaluated."""
        after = []
        for index, layer in enumerate(self.layers):
            before = kept[index] if kept else None
            x, pair = layer(x, rope, None if x.shape[1] == 1 else "causal", before)
            after.append(prefixed(pair, before))
        mx.eval(x, after)
        return self.norm(x), after

    def features_of(
        self, x: mx.array, rope: Rope, prefix: Sequence[KeyValues], tokens: slice, after_first: AfterFirstBlock
    ) -> mx.array:
        """The features of x's `tokens` alone; all attend to one another and to the prefix."""

        def run(layers: slice, x: mx.array) -> mx.array:
            for layer, pair in zip(self.layers[layers], prefix[layers], strict=True):
                x, _ = layer(x, rope, None, pair)
            return x

        first = run(slice(1), x)
        return self.norm(after_first(x[:, tokens], first[:, tokens], lambda: run(slice(1, None), first)[:, tokens]))

    def states(
        self,
        x: mx.array,
        rope: Rope,
        layers: Sequence[int],
        *,
        mask: mx.array | str | None = "causal",
        deepstack: Sequence[mx.array] = (),
    ) -> list[mx.array]:
        """The residual stream after each of these counts of layers (0: the embeddings), without the last norm; what
        transformers calls hidden_states. Layers after the last one asked for are not run. `deepstack`: as
        `keys_values` takes it."""
        kept = {0: x}
        for count, (state, _) in enumerate(self._passed(x, rope, mask, max(layers), deepstack), 1):
            if count in layers:
                kept[count] = state
        return [kept[count] for count in layers]

    def unattended_states(self, x: mx.array, layers: Sequence[int]) -> list[mx.array]:
        """`states` of tokens that attend to nothing, themselves included: what a mask makes of padding on the left."""
        kept = {0: x}
        for index, layer in enumerate(self.layers[: max(layers)]):
            x = layer.feed(x)
            kept[index + 1] = x
        return [kept[count] for count in layers]

    def keys_values(self, x: mx.array, rope: Rope, deepstack: Sequence[mx.array] = ()) -> list[KeyValues]:
        """Each layer's keys and values for x, attending causally, evaluated. `deepstack`: [1, L, D] each, added after
        the first layers (Qwen3-VL's vision features; zero at other tokens)."""
        out = [pair for _, pair in self._passed(x, rope, "causal", len(self.layers), deepstack)]
        mx.eval(out)  # the last layer's own output is never asked for, so it is not computed
        return out

    def _passed(
        self, x: mx.array, rope: Rope, mask: mx.array | str | None, count: int, deepstack: Sequence[mx.array]
    ) -> Iterator[tuple[mx.array, KeyValues]]:
        """The residual stream after each of the first `count` layers, and that layer's keys and values."""
        for index, layer in enumerate(self.layers[:count]):
            x, pair = layer(x, rope, mask, None)
            if index < len(deepstack):
                x = x + deepstack[index]
            yield x, pair


def cuts(config: QwenConfig) -> Cuts:
    """How the layers are shared out over several machines."""
    queries, pairs = (count * config.head_size for count in (config.num_attention_heads, config.num_key_value_heads))
    inner = channels(config.intermediate_size)
    return {
        "*.self_attn.q_proj": rows(heads(queries, config.num_key_value_heads)),
        "*.self_attn.[kv]_proj": rows(heads(pairs, config.num_key_value_heads)),
        "*.self_attn.o_proj": columns(heads(queries, config.num_key_value_heads)),
        "*.mlp.gate_proj": rows(inner),
        "*.mlp.up_proj": rows(inner),
        "*.mlp.down_proj": columns(inner),
    }


class DecoderLayer(nn.Module):
    def __init__(self, config: QwenConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def __call__(
        self, x: mx.array, rope: Rope, mask: mx.array | str | None, prefix: KeyValues | None
    ) -> tuple[mx.array, KeyValues]:
        """The residual stream stays in x's dtype; what the linears see is in the weights'."""
        dtype = self.input_layernorm.weight.dtype
        out, pair = self.self_attn(self.input_layernorm(x).astype(dtype), rope, mask, prefix)
        return self.feed(residual_sum(x, out)), pair

    def feed(self, x: mx.array) -> mx.array:
        """The layer's second half."""
        return residual_sum(x, self.mlp(self.post_attention_layernorm(x).astype(self.input_layernorm.weight.dtype)))


class Attention(nn.Module):
    def __init__(self, config: QwenConfig):
        super().__init__()
        dims, head = config.hidden_size, config.head_size
        self.q_proj = Linear(dims, config.num_attention_heads * head, bias=config.input_biases)
        self.k_proj = Linear(dims, config.num_key_value_heads * head, bias=config.input_biases)
        self.v_proj = Linear(dims, config.num_key_value_heads * head, bias=config.input_biases)
        self.o_proj = Linear(config.num_attention_heads * head, dims, bias=config.attention_bias)
        if config.third_generation:
            self.q_norm, self.k_norm = RMSNorm(head, config.rms_norm_eps), RMSNorm(head, config.rms_norm_eps)
        self._head_size = head

    def __call__(
        self, x: mx.array, rope: Rope, mask: mx.array | str | None, prefix: KeyValues | None
    ) -> tuple[mx.array, KeyValues]:
        q = split_heads(self.q_proj(x), norm=self.get("q_norm"), size=self._head_size)  # [B, H, L, D]
        k = split_heads(self.k_proj(x), norm=self.get("k_norm"), size=self._head_size)
        v = split_heads(self.v_proj(x), size=self._head_size)
        q, k = rotate_halves(q, rope), rotate_halves(k, rope)
        return self.o_proj(attend(q, *prefixed((k, v), prefix), mask=mask)), (k, v)


class MLP(nn.Module):
    def __init__(self, dims: int, inner: int):
        super().__init__()
        self.gate_proj = Linear(dims, inner, bias=False)
        self.up_proj = Linear(dims, inner, bias=False)
        self.down_proj = Linear(inner, dims, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
