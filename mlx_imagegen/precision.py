"""Every dtype decision, with its reason.

| what                               | GPU      | CPU     | why                                                               |
|------------------------------------|----------|---------|-------------------------------------------------------------------|
| transformer and text weights       | bfloat16 | float32 | bf16 products are ~30x slower than float32 on the CPU backend     |
| transformer activations            | bfloat16 | float32 | as the weights; norms and softmax accumulate in float32 inside    |
|                                    |          |         | mx.fast                                                           |
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

Checked on the CPU backend only: everything in the GPU column is chosen from MLX's documented kernels, not measured here.
"""

import mlx.core as mx


def on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


def compute_dtype() -> mx.Dtype:
    """Weights and activations of the text encoders and the transformer."""
    return mx.bfloat16 if on_gpu() else mx.float32


VAE_DTYPE = mx.float32
SOLVER_DTYPE = mx.float32
ROPE_DTYPE = mx.float32
RESIDUAL_DTYPE = mx.float32  # HiDream-O1's
