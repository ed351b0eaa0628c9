"""Z-Image's transformer config, field by field, as diffusers writes it. Other architectures are refused by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from ...errors import ConfigError
from ...escaping import shown
from ...loading.config import HEADS, POSITIVE, Config, Range

ADALN_DIM = 256  # at most, of the vector that all modulation reads; diffusers fixes it in code


@dataclass(frozen=True)
class ZImageConfig(Config):
    """transformer/config.json"""

    # How long diffusers' rope tables are; here they are made for the positions that a picture has.
    IGNORED: ClassVar[frozenset[str]] = frozenset({"axes_lens"})
    CLASSES: ClassVar[frozenset[str]] = frozenset({"ZImageTransformer2DModel"})

    all_f_patch_size: tuple[int, ...]
    all_patch_size: tuple[Annotated[int, Range(1, 64)], ...]
    axes_dims: tuple[int, ...]
    cap_feat_dim: int
    dim: int
    in_channels: int
    n_heads: Annotated[int, HEADS]
    n_kv_heads: Annotated[int, HEADS]
    n_layers: Annotated[int, Range(1, 1000)]
    n_refiner_layers: Annotated[int, Range(1, 1000)]
    norm_eps: Annotated[float, POSITIVE]
    qk_norm: bool
    rope_theta: Annotated[float, POSITIVE]
    t_scale: Annotated[float, POSITIVE]
    siglip_feat_dim: int | None = None  # of the Omni edition, which reads reference pictures

    @classmethod
    def read(cls, data: dict[str, Any], where: str | Path) -> Self:
        config = super().read(data, where)
        for field, value, only in (
            ("all_f_patch_size", config.all_f_patch_size, (1,)),
            ("all_patch_size", config.all_patch_size, config.all_patch_size[:1] or (2,)),
            ("qk_norm", config.qk_norm, True),
            ("n_kv_heads", config.n_kv_heads, config.n_heads),
        ):
            if value != only:
                raise ConfigError(
                    f"{where}: field '{field}' is {shown(value)}, where every published Z-Image has {only!r}, the only "
                    "value this port knows. Take the file from the model's repository."
                )
        axes = config.axes_dims
        if (
            config.dim % config.n_heads
            or sum(axes) != config.dim // config.n_heads
            or len(axes) != 3
            or any(dims % 2 for dims in axes)
        ):
            raise ConfigError(
                f"{where}: 'axes_dims' {shown(list(axes))} must be three even numbers that add up to 'dim' / "
                f"'n_heads', {config.dim} / {config.n_heads}; take the file from the model's repository."
            )
        return config

    @property
    def patch_size(self) -> int:
        """A token's side, in latents."""
        return self.all_patch_size[0]

    @property
    def patch_key(self) -> str:
        """By which the checkpoint calls the layers at both ends."""
        return f"{self.patch_size}-{self.all_f_patch_size[0]}"

    @property
    def is_omni(self) -> bool:
        return self.siglip_feat_dim is not None

    @property
    def adaln_dim(self) -> int:
        return min(self.dim, ADALN_DIM)

    @property
    def ffn_dim(self) -> int:
        return int(self.dim / 3 * 8)
