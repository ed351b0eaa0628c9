"""XLabs' IP-Adapter for FLUX.1: pictures that the double blocks look at, next to the words.

CLIP's vector of a picture becomes a few tokens, and in each double block the picture's own tokens attend to them by
themselves; the result, times the picture's scale, is added after the block. The tokens' keys and values are computed
once a prompt: the adapter's weights are not in memory in the loop.
In: a folder with XLabs' file, and CLIP in image_encoder/; pictures. Out: keys and values for each block.
Must not know: the transformer, requests.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ...errors import CheckpointError, MissingFileError
from ...layers.attention import KeyValues, split_heads
from ...layers.linear import Linear
from ...layers.norm import LayerNorm
from ...loading.checkpoint import open_checkpoint
from ...loading.component import Component
from ...loading.names import RowRange
from ...loading.tensors import NamedTensors, name_tensors
from ...loading.weights import check_tensors
from ...precision import compute_dtype
from ...vision.clip import UNUSED, ClipVisionConfig, ClipVisionModel, prepared
from ...vision.tower import without_prefix
from ..image_prompts import ImageAdapter, ImagePrompt, check_width, open_part
from .config import FluxConfig
from .prompts import AttendedPicture, PromptPictures

NORM_EPS = 1e-5  # torch's default, which diffusers takes
PROJECTION, NORM = "image_proj.proj.weight", "image_proj.norm.weight"
# XLabs' names -> diffusers'
PREFIXES = {"ip_adapter_proj_model.": "image_proj.", "double_blocks.": "ip_adapter."}
LAYERS = {
    ".processor.ip_adapter_double_stream_k_proj.": ".to_k_ip.",
    ".processor.ip_adapter_double_stream_v_proj.": ".to_v_ip.",
}
CLIP = "openai/clip-vit-large-patch14"


class ImageProjection(nn.Module):
    """CLIP's vector [B, P] -> tokens [B, N, D]."""

    def __init__(self, width: int, count: int, dims: int):
        super().__init__()
        self.proj = Linear(width, count * dims)
        self.norm = LayerNorm(dims, NORM_EPS)
        self._dims = dims

    def __call__(self, x: mx.array) -> mx.array:
        tokens: mx.array = self.norm(self.proj(x).reshape(len(x), -1, self._dims))
        return tokens


class BlockProjections(nn.Module):
    def __init__(self, dims: int, inner: int):
        super().__init__()
        self.to_k_ip, self.to_v_ip = Linear(dims, inner), Linear(dims, inner)


class IpAdapter(nn.Module):
    def __init__(self, width: int, count: int, model: FluxConfig):
        super().__init__()
        dims = model.joint_attention_dim
        self.image_proj = ImageProjection(width, count, dims)
        self.ip_adapter = [BlockProjections(dims, model.inner_dim) for _ in range(model.num_layers)]
        self._heads = model.num_attention_heads

    def __call__(self, vector: mx.array) -> list[KeyValues]:
        """[1, P] -> keys and values [1, H, N, D/H] for each double block."""
        tokens = self.image_proj(vector)
        pairs = [(block.to_k_ip(tokens), block.to_v_ip(tokens)) for block in self.ip_adapter]
        return [(split_heads(k, self._heads), split_heads(v, self._heads)) for k, v in pairs]


class FluxIpAdapter(ImageAdapter[PromptPictures]):
    def __init__(self, name: str, folder: Path, model: FluxConfig):
        """`model`: the transformer's config, whose double blocks look at the pictures."""
        self.name = name
        _check_has_tower(folder)
        path, encoder = open_part(name, folder, "image_encoder", without_prefix)
        tower = ClipVisionConfig.read(dict(encoder.config), path)
        named = name_tensors(f"ip_adapter:{name}", open_checkpoint(folder), from_xlabs)
        rows, columns = _projection(named)
        dims = named.shape(NORM)[0]
        check_width(named.checkpoint.paths[0], NORM, dims, model.joint_attention_dim, "this model's text")
        check_width(path, "projection_dim", tower.projection_dim, columns, "the adapter next to it")
        self.encoder_tokens, self._side = tower.tokens, tower.image_size
        self._encoder = Component(
            check_tensors(encoder, [ClipVisionModel(tower)], UNUSED),
            lambda: ClipVisionModel(tower),
            compute_dtype(),
            heads=tower.num_attention_heads,
        )
        sizes = columns, rows // dims, model
        self._adapter = Component(check_tensors(named, [IpAdapter(*sizes)]), lambda: IpAdapter(*sizes), compute_dtype())
        self.components = {each.weights.component: each for each in (self._encoder, self._adapter)}

    def encode(self, images: Sequence[ImagePrompt]) -> PromptPictures:
        return PromptPictures(attended=tuple(map(self._attended, images)))

    def _attended(self, image: ImagePrompt) -> AttendedPicture:
        pixels = mx.array(prepared(image.picture, self._side))[None].astype(compute_dtype())
        blocks: list[KeyValues] = self._adapter.load()(self._encoder.load()(pixels))
        mx.eval(blocks)
        return AttendedPicture(image.scale, tuple(blocks))


def from_xlabs(name: str) -> Iterable[RowRange]:
    """XLabs' names, or those by which diffusers knows them."""
    for theirs, ours in PREFIXES.items():
        name = name.replace(theirs, ours, 1) if name.startswith(theirs) else name
    for theirs, ours in LAYERS.items():
        name = name.replace(theirs, ours)
    yield RowRange(name)


def _projection(named: NamedTensors) -> tuple[int, int]:
    """The shape of the layer that makes tokens of CLIP's vector: [tokens x their width, the vector's width]."""
    shapes = [named.shape(name) if name in named.slices else () for name in (PROJECTION, NORM)]
    if [len(shape) for shape in shapes] != [2, 1] or shapes[0][0] % shapes[1][0]:
        raise CheckpointError(
            f"{named.checkpoint.shown}: no '{PROJECTION}' and '{NORM}' that fit each other: this is no IP-Adapter in "
            "XLabs' layout. Give the folder of XLabs-AI/flux-ip-adapter."
        )
    return shapes[0][0], shapes[0][1]


def _check_has_tower(folder: Path) -> None:
    path = folder / "image_encoder" / "config.json"
    if not path.is_file():
        raise MissingFileError(
            f"{path} is not there, and the IP-Adapter reads pictures through CLIP: put config.json and "
            f"model.safetensors of {CLIP} into that folder."
        )
