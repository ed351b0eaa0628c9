"""IP-Adapters for FLUX.1: pictures that the blocks look at, next to the words.

A vision tower's vector of a picture becomes a few tokens, and in the blocks the picture's own tokens attend to them by
themselves; the result, times the picture's scale, is added. XLabs' adapter reads CLIP's vector, and adds after the
double blocks; InstantX' reads SigLIP's, and adds inside the attention of all blocks. The tokens' keys and values are
computed once a prompt: the adapter's weights are not in memory in the loop.
In: a folder with the adapter's file, and the tower in image_encoder/; pictures. Out: keys and values for each block.
Must not know: the transformer, requests.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image

from ...errors import CheckpointError, MissingFileError
from ...layers.activation import gelu
from ...layers.attention import KeyValues, split_heads
from ...layers.linear import Linear
from ...layers.norm import LayerNorm
from ...loading.checkpoint import open_checkpoint
from ...loading.component import Component
from ...loading.single_file import renamed
from ...loading.tensors import NamedTensors, name_tensors
from ...loading.weights import check_tensors
from ...precision import compute_dtype
from ...vision import clip, siglip
from ...vision.tower import SquareTowerConfig, without_prefix
from ..image_prompts import ImageAdapter, ImagePrompt, check_width, open_part
from .config import FluxConfig
from .keys import INNER, NORM, OUTER, PROJECTION, XLABS_ADAPTER
from .prompts import AttendedPicture, PromptPictures

NORM_EPS = 1e-5  # torch's default, which diffusers takes; InstantX' code has it for keys as well
TOWERS = "openai/clip-vit-large-patch14 for XLabs', of google/siglip-so400m-patch14-384 for InstantX'"
PICKLE = "ip-adapter.bin"  # InstantX'
CONVERSION = (
    "import torch, safetensors.torch as s; w = torch.load('ip-adapter.bin', weights_only=True); "
    "s.save_file({f'{p}.{n}': t.contiguous() for p in w for n, t in w[p].items()}, 'ip-adapter.safetensors')"
)


class ImageProjection(nn.Module):
    """XLabs': CLIP's vector [B, P] -> tokens [B, N, D]."""

    def __init__(self, width: int, count: int, dims: int):
        super().__init__()
        self.proj = Linear(width, count * dims)
        self.norm = LayerNorm(dims, NORM_EPS)
        self._dims = dims

    def __call__(self, x: mx.array) -> mx.array:
        tokens: mx.array = self.norm(self.proj(x).reshape(len(x), -1, self._dims))
        return tokens


class DeepProjection(nn.Module):
    """InstantX': SigLIP's vector [B, P] -> tokens [B, N, D]."""

    def __init__(self, width: int, inner: int, count: int, dims: int):
        super().__init__()
        self.proj = {"0": Linear(width, inner), "2": Linear(inner, count * dims)}  # 1 is the activation
        self.norm = LayerNorm(dims, NORM_EPS)
        self._dims = dims

    def __call__(self, x: mx.array) -> mx.array:
        wide: mx.array = self.proj["2"](gelu(self.proj["0"](x)))
        tokens: mx.array = self.norm(wide.reshape(len(x), -1, self._dims))
        return tokens


class BlockProjections(nn.Module):
    def __init__(self, dims: int, inner: int, bias: bool):
        super().__init__()
        self.to_k_ip, self.to_v_ip = Linear(dims, inner, bias), Linear(dims, inner, bias)


class IpAdapter(nn.Module):
    """XLabs'."""

    def __init__(self, projection: Callable[[], nn.Module], model: FluxConfig):
        """`model`: the transformer's config."""
        super().__init__()
        dims = model.joint_attention_dim
        self.image_proj = projection()
        self.ip_adapter = [BlockProjections(dims, model.inner_dim, bias=True) for _ in range(model.num_layers)]
        self._heads = model.num_attention_heads

    def __call__(self, vector: mx.array) -> list[KeyValues]:
        """[1, P] -> keys and values [1, H, N, D/H] for each block that has some."""
        tokens = self.image_proj(vector)
        pairs = [(block.to_k_ip(tokens), block.to_v_ip(tokens)) for block in self.ip_adapter]
        return [(split_heads(k, self._heads), split_heads(v, self._heads)) for k, v in pairs]


class InstantXAdapter(IpAdapter):
    def __init__(self, projection: Callable[[], nn.Module], model: FluxConfig):
        super().__init__(projection, model)
        dims, depth = model.joint_attention_dim, model.num_layers + model.num_single_layers
        self.ip_adapter = [BlockProjections(dims, model.inner_dim, bias=False) for _ in range(depth)]

    def __call__(self, vector: mx.array) -> list[KeyValues]:
        return [(mx.fast.rms_norm(k, None, NORM_EPS), v) for k, v in super().__call__(vector)]


class Tower(NamedTuple):
    """What makes one vector of a picture."""

    config: SquareTowerConfig
    model: Callable[[], nn.Module]
    unused: tuple[str, ...]  # how its tensors begin that are not read
    field: str  # of its config: the width of the vector
    tokens: int
    pixels: Callable[[Image.Image], np.ndarray]


class Projection(NamedTuple):
    """What makes tokens of a vector, by its layers' shapes."""

    layers: Callable[[], nn.Module]
    width: int  # of the vector
    tokens: int  # that it makes
    dims: int  # of a token


class FluxIpAdapter(ImageAdapter[PromptPictures]):
    def __init__(self, name: str, folder: Path, model: FluxConfig):
        """`model`: the transformer's config, whose blocks look at the pictures."""
        self.name = name
        _check_files(folder)
        path, encoder = open_part(name, folder, "image_encoder", without_prefix)
        tower = _open_tower(encoder, path)
        named = name_tensors(f"ip_adapter:{name}", open_checkpoint(folder), renamed(*XLABS_ADAPTER))
        self._inside = INNER in named.slices
        projection = _projection(named)
        check_width(named.checkpoint.paths[0], NORM, projection.dims, model.joint_attention_dim, "this model's text")
        check_width(path, tower.field, getattr(tower.config, tower.field), projection.width, "the adapter next to it")
        self._pixels = tower.pixels
        self._encoder = Component(
            check_tensors(encoder, [tower.model()], tower.unused),
            tower.model,
            compute_dtype(),
            heads=tower.config.num_attention_heads,
        )
        kind, sizes = InstantXAdapter if self._inside else IpAdapter, (projection.layers, model)
        self._adapter = Component(check_tensors(named, [kind(*sizes)]), lambda: kind(*sizes), compute_dtype())
        self.components = {each.weights.component: each for each in (self._encoder, self._adapter)}
        self.tokens = dict(zip(self.components, (tower.tokens, projection.tokens), strict=True))

    def encode(self, images: Sequence[ImagePrompt]) -> PromptPictures:
        return PromptPictures(attended=tuple(map(self._attended, images)))

    def _attended(self, image: ImagePrompt) -> AttendedPicture:
        pixels = mx.array(self._pixels(image.picture))[None].astype(compute_dtype())
        blocks: list[KeyValues] = self._adapter.load()(self._encoder.load()(pixels))
        mx.eval(blocks)
        return AttendedPicture(image.scale, tuple(blocks), self._inside)


def _open_tower(encoder: NamedTensors, path: Path) -> Tower:
    """`path`: of its config.json."""
    data = dict(encoder.config)
    if str(data.get("model_type")).startswith("siglip"):
        config = siglip.SiglipConfig.read(data, path)
        side = config.image_size
        return Tower(
            config,
            lambda: siglip.SiglipVisionModel(config, pooled=True),
            siglip.OF_THE_WHOLE,
            "hidden_size",
            config.patches,
            lambda picture: siglip.PIXELS.pixels(picture, (side, side)),
        )
    of_clip = clip.ClipVisionConfig.read(data, path)
    return Tower(
        of_clip,
        lambda: clip.ClipVisionModel(of_clip),
        clip.UNUSED,
        "projection_dim",
        of_clip.tokens,
        lambda picture: clip.prepared(picture, of_clip.image_size),
    )


def _projection(named: NamedTensors) -> Projection:
    names = (INNER, OUTER, NORM) if INNER in named.slices else (PROJECTION, PROJECTION, NORM)
    shapes = [named.shape(name) if name in named.slices else () for name in names]
    if [len(shape) for shape in shapes] != [2, 2, 1] or shapes[1][0] % shapes[2][0]:
        raise CheckpointError(
            f"{named.checkpoint.shown}: no '{names[1]}' and '{NORM}' that fit each other: this is no IP-Adapter in "
            "XLabs' layout or InstantX'. Give the folder of XLabs-AI/flux-ip-adapter, or of InstantX' converted file."
        )
    (inner, width), (outer, _), (dims,) = shapes
    count = outer // dims
    if names[0] == INNER:
        return Projection(lambda: DeepProjection(width, inner, count, dims), width, count, dims)
    return Projection(lambda: ImageProjection(width, count, dims), width, count, dims)


def _check_files(folder: Path) -> None:
    if (folder / PICKLE).is_file() and not list(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder / PICKLE} is a pickle, which can run any code when it is opened, so it is refused. Convert it "
            f'once, in its folder: python -c "{CONVERSION}"'
        )
    path = folder / "image_encoder" / "config.json"
    if not path.is_file():
        raise MissingFileError(
            f"{path} is not there, and an IP-Adapter reads pictures through a vision tower: put config.json and "
            f"model.safetensors into that folder, of {TOWERS}."
        )
