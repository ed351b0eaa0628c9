"""Qwen3.5's language model, which writes text: three of four layers keep a memory (gated_delta.py), the fourth attends.

In: embeddings [1, L, D], rope tables, and what the layers have kept of the tokens before. Out: the logits after the
last token, and what is kept now. What Qwen's models have in common is in qwen.py.
Must not know: prompts, templates, pictures, how a token is chosen.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..errors import ConfigError
from ..escaping import quoted
from ..layers.activation import silu
from ..layers.attention import KeyValues, attend, prefixed, split_heads
from ..layers.linear import Linear
from ..layers.norm import RMSNorm, ZeroCentredRMSNorm
from ..loading.config import read_table
from ..loading.names import RowRange
from ..loading.transforms import LayerTensors, Transform
from .gated_delta import CHUNK, gated_delta
from .qwen import MLP, UNUSED, QwenConfig, Rope, rotate_halves
from .qwen import from_published as language_model_name

Kept = tuple[mx.array, mx.array]  # keys and values; or the convolution's last inputs, and the memory

MEMORY, ATTENTION = "linear_attention", "full_attention"  # what layer_types calls them
ROPE_KEYS = frozenset(
    {"mrope_interleaved", "mrope_section", "partial_rotary_factor", "rope_theta", "rope_type", "type"}
)
VISUAL = "model.visual."  # how the vision tower's tensors begin
UNREAD = ("mtp.",)  # a head that guesses further tokens, to check them together
# Those of a layer's norms whose weights are stored less one.
CENTRED = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm")
L2_EPS = 1e-6  # transformers fixes it in code


@dataclass(frozen=True, kw_only=True)
class HybridConfig(QwenConfig):
    """The text_config of a Qwen3.5; read it with `read_hybrid_config`."""

    IGNORED: ClassVar[frozenset[str]] = UNUSED | frozenset(
        """attn_output_gate full_attention_interval mamba_ssm_dtype mlp_only_layers mtp_num_hidden_layers
        mtp_use_dedicated_embeddings""".split()
    )

    linear_conv_kernel_dim: int
    linear_key_head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_value_head_dim: int
    partial_rotary_factor: float = 1.0

    def misfits(self) -> Iterator[tuple[str, str]]:
        if not self.model_type.startswith("qwen3_5"):
            yield "model_type", "a Qwen3.5"
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != self.rotary_size:
            yield "mrope_section", f"three numbers that fill half of what turns ({self.rotary_size // 2})"
        if len(self.layer_types) != self.num_hidden_layers or not set(self.layer_types) <= {MEMORY, ATTENTION}:
            yield "layer_types", f"{MEMORY} or {ATTENTION} for each of {self.num_hidden_layers} layers"
        if self.num_attention_heads % self.num_key_value_heads:
            yield "num_attention_heads", f"a multiple of num_key_value_heads ({self.num_key_value_heads})"
        if self.linear_num_value_heads % self.linear_num_key_heads:
            yield "linear_num_value_heads", f"a multiple of linear_num_key_heads ({self.linear_num_key_heads})"

    @property
    def rotary_size(self) -> int:
        return int(self.head_size * self.partial_rotary_factor)

    @property
    def key_dims(self) -> int:
        return self.linear_key_head_dim * self.linear_num_key_heads

    @property
    def value_dims(self) -> int:
        return self.linear_value_head_dim * self.linear_num_value_heads


def read_hybrid_config(data: dict[str, Any], where: Path) -> HybridConfig:
    """From the config.json of a Qwen3.5 with a vision tower."""
    text = dict(read_table(data, "text_config", where))
    rope = read_table(text, "rope_parameters", where)
    text = {key: value for key, value in text.items() if key != "rope_parameters"}
    fields = ("mrope_section", "partial_rotary_factor", "rope_theta")
    text |= {name: rope[name] for name in fields if name in rope}
    if not text.get("layer_types"):
        text["layer_types"] = _usual_layers(text, where)
    config = HybridConfig.read(text, where)
    unknown = sorted(rope.keys() - ROPE_KEYS)
    faults = {
        f"rope_parameters' {quoted(unknown[0] if unknown else '')}": bool(unknown),
        "rope type": rope.get("rope_type", rope.get("type", "default")) != "default",
        "attn_output_gate": not text.get("attn_output_gate", True),
        "tie_word_embeddings": bool(data.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
    }
    if odd := [name for name, wrong in faults.items() if wrong]:
        raise ConfigError(f"{where}: {odd[0]} is not what a Qwen3.5-9B has; {HybridConfig.REMEDY}.")
    return config


def _usual_layers(text: dict[str, Any], where: Path) -> list[str]:
    """Every fourth layer attends, if the file says nothing else."""
    interval, count = text.get("full_attention_interval", 4), text.get("num_hidden_layers")
    if type(interval) is not int or interval < 1:
        raise ConfigError(f"{where}: full_attention_interval is {quoted(interval)}, which is no number of layers.")
    return [MEMORY if (index + 1) % interval else ATTENTION for index in range(count if type(count) is int else 0)]


def from_published(name: str) -> Iterable[RowRange]:
    """As transformers saves it (`model.language_model.`, `model.visual.`), or mlx-vlm (`language_model.model.`,
    `vision_tower.`)."""
    for visual in ("model.language_model.visual.", "vision_tower.", VISUAL):
        if name.startswith(visual):
            yield RowRange(VISUAL + name.removeprefix(visual))
            return
    yield from language_model_name(name)


class FromMlx(Transform):
    """Of a checkpoint that mlx-vlm has saved: its norms' weights are whole, and its convolution over patches has the
    channels last."""

    def apply(self, tensors: LayerTensors) -> LayerTensors:
        weight = tensors.values.get("weight")
        if weight is not None and is_centred(tensors.path):
            return tensors.with_values({**tensors.values, "weight": weight - 1})
        if weight is not None and weight.ndim == 5:
            return tensors.with_values({**tensors.values, "weight": weight.transpose(0, 4, 1, 2, 3)})
        return tensors


def is_centred(path: str) -> bool:
    """Whether a layer's weight is stored less one."""
    return path == "norm" or (not path.startswith(VISUAL) and path.rpartition(".")[2] in CENTRED)


def working_bytes(config: HybridConfig, length: int, limit: int, size: int) -> int:
    """The most that reading a prompt of `length` tokens and writing `limit` take on top of the weights; `size`: of a
    number."""
    heads, keys, values = config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim
    chunks = -(-length // CHUNK) * CHUNK
    mlp = 3 * config.intermediate_size * size
    # Arrays of gated_delta that are there at once: at most so many were measured, half as many with short questions.
    memory = (heads * (12 * keys + 12 * values + 19 * CHUNK) + 2 * config.key_dims + config.value_dims) * 4
    kinds = config.layer_types
    pair = 2 * config.num_key_value_heads * config.head_size * size * (length + limit)
    kept = kinds.count(ATTENTION) * pair + kinds.count(MEMORY) * heads * keys * values * 4
    return chunks * (4 * config.hidden_size * size + max(mlp, memory)) + 2 * kept + 8 * config.vocab_size


class HybridModel(nn.Module):
    def __init__(self, config: HybridConfig):
        super().__init__()
        self.layers = [HybridLayer(config, kind) for kind in config.layer_types]
        self.norm = ZeroCentredRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, x: mx.array, rope: Rope, kept: Sequence[Kept] | None = None) -> tuple[mx.array, list[Kept]]:
        """x [1, L, D] -> [vocabulary], and what is kept, both evaluated. Every layer is evaluated by itself: a long
        prompt's activations would stand in memory together."""
        after = []
        for index, layer in enumerate(self.layers):
            x, pair = layer(x, rope, kept[index] if kept else None)
            after.append(pair)
            if x.shape[1] > 1:
                mx.eval(x, pair)
        logits = self.lm_head(self.norm(x[:, -1:]))[0, 0].astype(mx.float32)
        mx.eval(logits, after)
        return logits, after


class HybridLayer(nn.Module):
    def __init__(self, config: HybridConfig, kind: str):
        super().__init__()
        self.input_layernorm = ZeroCentredRMSNorm(config.hidden_size, config.rms_norm_eps)
        self._name = "self_attn" if kind == ATTENTION else "linear_attn"
        self[self._name] = GatedAttention(config) if kind == ATTENTION else GatedDeltaNet(config)
        self.post_attention_layernorm = ZeroCentredRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def __call__(self, x: mx.array, rope: Rope, kept: Kept | None) -> tuple[mx.array, Kept]:
        out, kept = self[self._name](self.input_layernorm(x), rope, kept)
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class GatedAttention(nn.Module):
    """A quarter of each head turns with the position; a gate next to each query scales what it reads."""

    def __init__(self, config: HybridConfig):
        super().__init__()
        dims, head = config.hidden_size, config.head_size
        self.q_proj = Linear(dims, 2 * config.num_attention_heads * head, bias=config.attention_bias)
        self.k_proj = Linear(dims, config.num_key_value_heads * head, bias=config.attention_bias)
        self.v_proj = Linear(dims, config.num_key_value_heads * head, bias=config.attention_bias)
        self.o_proj = Linear(config.num_attention_heads * head, dims, bias=config.attention_bias)
        self.q_norm = ZeroCentredRMSNorm(head, config.rms_norm_eps)
        self.k_norm = ZeroCentredRMSNorm(head, config.rms_norm_eps)
        self._head_size, self._rotary_size = head, config.rotary_size

    def __call__(self, x: mx.array, rope: Rope, kept: KeyValues | None) -> tuple[mx.array, KeyValues]:
        batch, length, _ = x.shape
        q, gate = mx.split(self.q_proj(x).reshape(batch, length, -1, 2 * self._head_size), 2, axis=-1)
        q = self.q_norm(q).transpose(0, 2, 1, 3)
        k = split_heads(self.k_proj(x), norm=self.k_norm, size=self._head_size)
        v = split_heads(self.v_proj(x), size=self._head_size)
        pair = prefixed((self._turned(k, rope), v), kept)
        out = attend(self._turned(q, rope), *pair, mask="causal" if length > 1 else None)
        return self.o_proj(out * mx.sigmoid(gate.reshape(batch, length, -1))), pair

    def _turned(self, x: mx.array, rope: Rope) -> mx.array:
        turned, rest = mx.split(x, [self._rotary_size], axis=-1)
        return mx.concatenate([rotate_halves(turned, rope), rest], axis=-1)


class GatedDeltaNet(nn.Module):
    def __init__(self, config: HybridConfig):
        super().__init__()
        dims, heads = config.hidden_size, config.linear_num_value_heads
        self.in_proj_qkv = Linear(dims, 2 * config.key_dims + config.value_dims, bias=False)
        self.in_proj_z = Linear(dims, config.value_dims, bias=False)
        self.in_proj_b = Linear(dims, heads, bias=False)
        self.in_proj_a = Linear(dims, heads, bias=False)
        self.conv1d = ShortConvolution(2 * config.key_dims + config.value_dims, config.linear_conv_kernel_dim)
        self.dt_bias, self.A_log = mx.zeros((heads,)), mx.zeros((heads,))
        self.norm = RMSNorm(config.linear_value_head_dim, config.rms_norm_eps)
        self.out_proj = Linear(config.value_dims, dims, bias=False)
        self._config = config

    def __call__(self, x: mx.array, rope: Rope, kept: Kept | None) -> tuple[mx.array, Kept]:
        config, (batch, length, _) = self._config, x.shape
        repeats = config.linear_num_value_heads // config.linear_num_key_heads
        mixed, inputs = self.conv1d(self.in_proj_qkv(x), kept[0] if kept else None)
        q, k, v = mx.split(mixed, [config.key_dims, 2 * config.key_dims], axis=-1)
        q, k = (split_heads(each.astype(mx.float32), size=config.linear_key_head_dim) for each in (q, k))
        q, k = (mx.repeat(_unit(each), repeats, axis=1) for each in (q, k))
        v = split_heads(v.astype(mx.float32), size=config.linear_value_head_dim)
        beta = mx.sigmoid(self.in_proj_b(x)).astype(mx.float32).swapaxes(1, 2)
        step = nn.softplus(self.in_proj_a(x).astype(mx.float32) + self.dt_bias.astype(mx.float32)).swapaxes(1, 2)
        decay = -mx.exp(self.A_log.astype(mx.float32))[:, None] * step
        shape = (batch, config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
        memory = kept[1] if kept else mx.zeros(shape)
        out, memory = gated_delta(q * config.linear_key_head_dim**-0.5, k, v, decay, beta, memory)
        out = self.norm(out.astype(x.dtype)).transpose(0, 2, 1, 3).reshape(batch, length, -1)
        gate = silu(self.in_proj_z(x).astype(mx.float32))
        return self.out_proj((out * gate).astype(x.dtype)), (inputs, memory)


def _unit(x: mx.array) -> mx.array:
    return x * mx.rsqrt(mx.sum(x * x, axis=-1, keepdims=True) + L2_EPS)


class ShortConvolution(nn.Module):
    """Over each channel's last few inputs, then SiLU."""

    def __init__(self, dims: int, size: int):
        super().__init__()
        self.weight = mx.zeros((dims, size))

    def __call__(self, x: mx.array, before: mx.array | None) -> tuple[mx.array, mx.array]:
        """x [B, L, D], and the inputs before it -> the same, and the inputs before what follows."""
        (batch, length, dims), size = x.shape, self.weight.shape[1]
        before = mx.zeros((batch, size - 1, dims), x.dtype) if before is None else before
        inputs = mx.concatenate([before, x], axis=1)
        wide, weight = inputs.astype(mx.float32), self.weight.astype(mx.float32)  # rounded once, as a convolution is
        products = (wide[:, place : place + length] * weight[:, place] for place in range(size))
        out = sum(products, mx.array(0.0))
        return silu(out.astype(x.dtype)), inputs[:, length:]
