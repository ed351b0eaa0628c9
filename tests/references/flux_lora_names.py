"""Names and shapes of Black Forest Labs' control LoRAs for FLUX.1 (Depth, Canny), as published: 1094 tensors."""

WIDTH, RANK, HEAD, LATENTS, DOUBLES, SINGLES = 3072, 128, 128, 64, 19, 38
# Rows and columns in units of the width.
DOUBLE = {
    f"{stream}_{name}": shape
    for stream in ("img", "txt")
    for name, shape in {
        "attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.0": (4, 1), "mlp.2": (1, 4), "mod.lin": (6, 1),
    }.items()
}  # fmt: skip
SINGLE = {"linear1": (7, 1), "linear2": (1, 5), "modulation.lin": (3, 1)}


def linears(width: int, latents: int, text: int, pooled: int, doubles: int, singles: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of every linear layer; the first one reads twice as many channels as the model's own."""
    shapes = {
        "img_in": (width, 2 * latents), "txt_in": (width, text),
        "time_in.in_layer": (width, 256), "time_in.out_layer": (width, width),
        "guidance_in.in_layer": (width, 256), "guidance_in.out_layer": (width, width),
        "vector_in.in_layer": (width, pooled), "vector_in.out_layer": (width, width),
        "final_layer.linear": (latents, width), "final_layer.adaLN_modulation.1": (2 * width, width),
    }  # fmt: skip
    for kind, count, layers in (("double", doubles, DOUBLE), ("single", singles, SINGLE)):
        for index in range(count):
            block = f"{kind}_blocks.{index}"
            shapes |= {f"{block}.{name}": (rows * width, cols * width) for name, (rows, cols) in layers.items()}
    return shapes


def norms(doubles: int, singles: int) -> list[str]:
    found = [f"double_blocks.{index}.{stream}_attn.norm" for index in range(doubles) for stream in ("img", "txt")]
    found += [f"single_blocks.{index}.norm" for index in range(singles)]
    return [f"{name}.{which}_norm.scale" for name in found for which in ("query", "key")]


def published_control_lora() -> dict[str, tuple[str, list[int]]]:
    """Name -> dtype and shape."""
    tensors = {}
    for name, (rows, columns) in linears(WIDTH, LATENTS, 4096, 768, DOUBLES, SINGLES).items():
        rank = min(RANK, rows, columns)
        tensors[f"{name}.lora_A.weight"] = ("BF16", [rank, columns])
        tensors[f"{name}.lora_B.weight"] = ("BF16", [rows, rank])
        tensors[f"{name}.lora_B.bias"] = ("BF16", [rows])
    return tensors | {name: ("BF16", [HEAD]) for name in norms(DOUBLES, SINGLES)}
