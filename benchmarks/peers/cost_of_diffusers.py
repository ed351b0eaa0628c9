"""A step of diffusers' transformer, counted from PyTorch's operations: cost_of_diffusers.py FAMILY, in its environment.

Nothing is computed: tensors are on the meta device. Each operation that is not a view counts as one launch that reads
its inputs and writes its outputs, as on MPS without compilation, including `_to_copy` and the like.
"""

import json
import math
import sys
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel, ZImageTransformer2DModel
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "addmm", "bmm", "linear"}
VIEWS = set(
    "view _unsafe_view t transpose permute expand slice select split chunk unbind unsqueeze squeeze alias detach "
    "as_strided view_as_complex view_as_real split_with_sizes unsafe_split empty new_empty _reshape_alias".split()
)


class Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, tuple[int, int]] = {}
        self.launches = 0
        self.product_flops = 0
        self.attention_flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in VIEWS:
            return out
        self.launches += 1
        if name in PRODUCTS:
            inputs = args[1] if name == "addmm" else args[0]
            self.product_flops += 2 * out.numel() * inputs.shape[-1]
        else:
            tensors = [each for each in _flat([args, out]) if isinstance(each, torch.Tensor)]
            moved = sum(tensor.untyped_storage().nbytes() if _expanded(tensor) else _size(tensor) for tensor in tensors)
            launches, before = self.kinds.get(name, (0, 0))
            self.kinds[name] = launches + 1, before + moved
        return out

    def attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
        """One operation, as MPS has it: [B, H, L, D]."""
        self.launches += 1
        self.attention_flops += 4 * math.prod(query.shape) * key.shape[2]
        batch, heads, length, _ = query.shape
        return query.new_empty(batch, length, heads, value.shape[3]).transpose(1, 2)

    def cost(self) -> dict[str, Any]:
        moved = sum(each for _, each in self.kinds.values())
        names = ("launches", "product_flops", "attention_flops", "kinds")
        return {"bytes": moved, **{name: getattr(self, name) for name in names}}


def _flat(values: Any) -> list[Any]:
    if isinstance(values, (list, tuple)):
        return [each for value in values for each in _flat(value)]
    return [values]


def _expanded(tensor: torch.Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def flux1() -> Any:
    model = FluxTransformer2DModel(guidance_embeds=True, joint_attention_dim=4096, pooled_projection_dim=768)
    return model, {
        "hidden_states": zeros(1, 4096, 64), "encoder_hidden_states": zeros(1, 512, 4096),
        "pooled_projections": zeros(1, 768), "timestep": zeros(1), "guidance": zeros(1),
        "img_ids": zeros(4096, 3), "txt_ids": zeros(512, 3),
    }  # fmt: skip


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def qwen_image() -> Any:
    return QwenImageTransformer2DModel(joint_attention_dim=3584), {
        "hidden_states": zeros(1, 4096, 64), "encoder_hidden_states": zeros(1, 64, 3584), "timestep": zeros(1),
        "img_shapes": [[(1, 64, 64)]], "encoder_hidden_states_mask": None,
    }  # fmt: skip


def z_image() -> Any:
    return ZImageTransformer2DModel(), {"x": [zeros(16, 1, 128, 128)], "t": zeros(1), "cap_feats": [zeros(64, 2560)]}


FAMILIES = {"flux1": flux1, "qwen_image": qwen_image, "z_image": z_image}


def main(family: str) -> dict[str, Any]:
    if family not in FAMILIES:
        return {}
    with torch.device("meta"):
        model, inputs = FAMILIES[family]()
        model = model.to(torch.bfloat16).eval()
        with torch.no_grad(), Counter() as counter:
            torch.nn.functional.scaled_dot_product_attention = counter.attention
            model(**inputs, return_dict=False)
    return {"": counter.cost()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
