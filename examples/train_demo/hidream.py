"""HiDream-O1 in plain torch: one Qwen3-VL decoder over a causal prompt and bidirectional pixel patches.

In: prompt ids, noisy patches and their noise level. Out: the clean patches. The parameters carry the checkpoint's
names. This module knows the architecture, not the training; it was checked against tensors of the upstream code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIX_POINT = 4096


@dataclass(frozen=True)
class Config:
    """The keys of config.json's text_config, and the sizes of the patches."""

    vocab_size: int
    hidden_size: int = 128
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 512
    rms_norm_eps: float = 1e-6
    rope_theta: float = 100.0
    mrope_section: tuple[int, int, int] = (12, 10, 10)
    patch_size: int = 16
    bottleneck_dim: int = 128


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps)
        self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        heads = (*x.shape[:2], -1, self.c.head_dim)
        q = rotated(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), cos, sin)  # [B, H, S, D]
        k = rotated(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        groups = self.c.num_attention_heads // self.c.num_key_value_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask.to(v.dtype))
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class TimestepEmbedder(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, c.hidden_size), nn.SiLU(), nn.Linear(c.hidden_size, c.hidden_size))

    def forward(self, t: Tensor) -> Tensor:
        frequencies = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
        angles = t[:, None] * 1000 * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


class PatchEmbedder(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.proj1 = nn.Linear(3 * c.patch_size**2, c.bottleneck_dim, bias=False)
        self.proj2 = nn.Linear(c.bottleneck_dim, c.hidden_size)

    def forward(self, z: Tensor) -> Tensor:
        return self.proj2(self.proj1(z))


class FinalLayer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.linear = nn.Linear(c.hidden_size, 3 * c.patch_size**2)


class Core(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.language_model = LanguageModel(c)
        self.t_embedder1 = TimestepEmbedder(c)
        self.x_embedder = PatchEmbedder(c)
        self.final_layer2 = FinalLayer(c)


class HiDreamO1(nn.Module):
    """The whole model; `tms` is not among the ids given to it: the timestep's embedding stands in its place."""

    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.model = Core(c)

    def forward(
        self, ids: Tensor, lengths: Tensor, z: Tensor, t: Tensor, grid: tuple[int, int], tap: int = 0
    ) -> tuple[Tensor, Tensor]:
        """ids [B, L] (padded right), z [B, N, 3pp], t [B] (1 - sigma) -> x0 [B, N, 3pp], a prompt state [B, C]."""
        m = self.model
        text, count = m.language_model.embed_tokens(ids), ids.shape[1]
        x = torch.cat([text, m.t_embedder1(t)[:, None], m.x_embedder(z)], 1).float()
        cos, sin = self.rotations(lengths, count, grid)
        mask = self.mask(lengths, count, x.shape[1])
        tapped = x
        for i, layer in enumerate(m.language_model.layers):
            x = layer(x, cos, sin, mask)
            if i == tap:
                tapped = x
        last = m.language_model.norm(x)
        return m.final_layer2.linear(last[:, count + 1 :]), tapped[torch.arange(len(ids)), lengths - 1]

    def rotations(self, lengths: Tensor, count: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, S, D]; text and timestep count on, patches sit at 4096 + row and column."""
        rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        image = FIX_POINT + torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1)  # [3, N]
        batch = len(lengths)
        text = torch.arange(count).expand(3, batch, count)
        positions = torch.cat([text, lengths.expand(3, batch)[..., None], image[:, None].expand(3, batch, -1)], -1)
        half = self.c.head_dim // 2
        inverse = self.c.rope_theta ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = positions[..., None] * inverse  # [3, B, S, D/2]
        mixed = angles[0].clone()
        for axis in (1, 2):
            places = slice(axis, 3 * self.c.mrope_section[axis], 3)
            mixed[..., places] = angles[axis, ..., places]
        mixed = torch.cat([mixed, mixed], -1)[:, None]
        return mixed.cos().float(), mixed.sin().float()

    def mask(self, lengths: Tensor, count: int, total: int) -> Tensor:
        """Additive [B, 1, S, S]: text is causal, the rest sees everything but padding."""
        rows, columns = torch.arange(total)[:, None], torch.arange(total)[None]
        causal = (columns <= rows) | (rows >= count)
        real = (columns[None] < lengths[:, None, None]) | (columns[None] >= count)
        padding_row = (rows < count)[None]  # causal rows never reach padding, and padded rows need something to see
        allowed = causal[None] & (real | padding_row)
        return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))[:, None]


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def patches(pictures: Tensor, size: int) -> Tensor:
    """[B, 3, H, W] -> [B, rows * columns, 3 * size * size], channel first within a patch."""
    b, c, h, w = pictures.shape
    x = pictures.view(b, c, h // size, size, w // size, size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // size) * (w // size), c * size * size)


def unpatched(x: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    b = x.shape[0]
    x = x.view(b, *grid, 3, size, size).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, 3, grid[0] * size, grid[1] * size)
