"""Every dtype decision, with its reason.

| what                               | GPU      | CPU     | why                                                               |
|------------------------------------|----------|---------|-------------------------------------------------------------------|
| transformer and text weights       | bfloat16 | float32 | bf16 products are ~30x slower than float32 on the CPU backend     |
| transformer activations            | bfloat16 | float32 | as the weights; norms and softmax accumulate in float32 inside    |
|                                    |          |         | mx.fast                                                           |
| FLUX.1's transformer on M1 and M2  | float16  |         | they compute bfloat16 in steps; its residual stream is float32    |
| HiDream-O1's residual stream       | float32  | float32 | its activations outgrow bf16's 8 bits over 36 layers              |
| RoPE tables and rotation           | float32  | float32 | angles reach thousands of radians; bf16 keeps 3 digits            |
| timesteps, sinusoids, modulation   | float32  | float32 | bf16 turns t = 988.41 into 988 (a slip of several ports); tables  |
| (tables are stored as activations) |          |         | are computed once, so that float32 costs nothing                  |
| latents, solver state, guidance    | float32  | float32 | a bf16 sum over 50 steps loses what a small step adds; guidance   |
|                                    |          |         | makes the rounding of two velocities as large as its scale        |
| VAE                                | float32  | float32 | runs once; row strips keep its memory down; no banding in skies   |
| starting noise                     | float32  | float32 | torch's bf16 noise is another draw, not a rounding of this one    |
| LoRA deltas, quantization          | float32  | float32 | rounded once, at the end                                          |

On M5 and later (and on CUDA) MLX by itself rounds the factors of float32 products to TF32's 10 bits of mantissa, a part
in 1000 instead of in 10 million. The decoder's 3x3 convolutions suffer most: Winograd's transform makes the error some
ten times larger (0.6 % of the output, root mean square, on random input), and thirty of them follow each other. So
runtime.py turns TF32 off for the process before the first product, unless MLX_ENABLE_TF32 is set. bfloat16 products keep
the matrix units; float32 ones take the ordinary cores, estimated at 0.1 to 0.3 s of a 1024x1024 decode.

float16 ends at 65504, bfloat16 does not. FLUX.1 fits: its residual stream, which outgrows that in late blocks, is
float32; a double block's feed-forward reads an input that is divided by FLOAT16_DIVISOR, and its output is multiplied
in float32, where it is added to the stream. Draw Things ships the same. `precision=` chooses by hand. Families say
whether they fit; Qwen-Image names the layers that would have to stay bfloat16, which leave too little to gain.

Checked on the CPU backend only: everything in the GPU column is chosen from MLX's documented kernels, not measured here.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from .errors import RequestError

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
ASKED = "asked for"
# Of Apple's GPUs the last generation without bfloat16 arithmetic: 13 is M1's, 14 M2's.
LAST_EMULATED = 14
# A power of two, so that dividing loses nothing above float16's smallest normal number, 6e-5.
FLOAT16_DIVISOR = 8.0


def on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


def dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def compute_dtype() -> mx.Dtype:
    """Weights and activations of the text encoders and the transformer."""
    return mx.bfloat16 if on_gpu() else mx.float32


VAE_DTYPE = mx.float32
SOLVER_DTYPE = mx.float32
ROPE_DTYPE = mx.float32
RESIDUAL_DTYPE = mx.float32  # HiDream-O1's


class Precision(NamedTuple):
    """Of a denoiser's weights and activations."""

    dtype: mx.Dtype
    reason: str = ""  # where it is not the usual

    @property
    def name(self) -> str:
        return dtype_name(self.dtype)

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def denoiser_precision(asked: str | None, title: str, fits_float16: bool, overflowing: Sequence[str]) -> Precision:
    """`asked`: a name in DTYPES; None: what suits the chip. The others are the family's (`FamilySpec`)."""
    usual = Precision(compute_dtype())
    if asked is None:
        narrow = fits_float16 and emulates_bfloat16()
        return Precision(mx.float16, "this chip only emulates bfloat16") if narrow else usual
    if asked not in DTYPES:
        raise RequestError(f"precision is '{asked}', which is not known; give one of {', '.join(DTYPES)}.")
    if not fits_float16 and DTYPES[asked] != usual.dtype:
        overflow = f"; in float16 these layers overflow: {', '.join(overflowing)}" if overflowing else ""
        raise RequestError(
            f"precision: {title} runs in {usual.name} here, and in nothing else{overflow}; leave precision out. FLUX.1 "
            "takes it."
        )
    return Precision(DTYPES[asked], ASKED)


def stream_dtype(dtype: mx.Dtype) -> mx.Dtype:
    """Of the residual stream between products in `dtype`."""
    return mx.float32 if dtype == mx.float16 else dtype


def gpu_generation() -> tuple[int, str] | None:
    """Of an Apple GPU, and its kind: (13, "s") is an M1 Max's, "p" are phones'; None on anything else."""
    found = (
        re.fullmatch(r"applegpu_g(\d+)(\w)", str(mx.device_info(mx.gpu).get("architecture", ""))) if on_gpu() else None
    )
    return (int(found[1]), found[2]) if found else None


def emulates_bfloat16() -> bool:
    generation = gpu_generation()
    return generation is not None and generation[0] <= LAST_EMULATED
