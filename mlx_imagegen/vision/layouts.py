"""Vision towers in llama.cpp's files of their own (mmproj), which its text encoders in GGUF lack.

Each function gives the layout of one tower for the component that has it in a family. Sizes are read off the shapes;
what no shape tells is as published with the family. Must not know: families, towers' modules.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..loading.names import Join, Rename, RowRange
from ..loading.single_file import SingleFile, Tensors, count, has, shape, substitute

ALL = ("v.patch_embd.weight", "v.patch_embd.weight.1", "v.blk.0.ffn_up.weight", "mm.2.weight")
TOWER = "its vision tower"
ARCHITECTURE = "clip"  # of every such file
PATCHES = re.compile(r"^v\.patch_embd\.weight(\.1)?$")  # of a picture's first and second frame
APART = re.compile(r"\.attn_([qkv])\.(weight|bias)$")
DEEPSTACK = re.compile(r"^v\.deepstack\.(\d+)\.")
# llama.cpp's names -> Hugging Face's, of every tower.
BLOCKS = (
    (r"^v\.patch_embd\.", "patch_embed.proj."),
    (r"^v\.blk\.(\d+)\.", r"blocks.\1."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.attn_qkv\.", ".attn.qkv."),
    (r"\.attn_out\.", ".attn.proj."),
)
QWEN_2_5 = (
    *BLOCKS,
    (r"\.ffn_(gate|up|down)\.", r".mlp.\1_proj."),
    (r"^v\.post_ln\.", "merger.ln_q."),
    (r"^mm\.([02])\.", r"merger.mlp.\1."),
)
QWEN3 = (
    *BLOCKS,
    (r"\.ffn_up\.", ".mlp.linear_fc1."),
    (r"\.ffn_down\.", ".mlp.linear_fc2."),
    (r"^v\.position_embd\.", "pos_embed."),
    (r"^v\.post_ln\.", "merger.norm."),
    (r"^mm\.0\.", "merger.linear_fc1."),
    (r"^mm\.2\.", "merger.linear_fc2."),
    (r"^(v\.deepstack\.\d+)\.fc([12])\.", r"\1.linear_fc\2."),
)


def qwen2_5_tower_file(component: str) -> SingleFile:
    """Which blocks see all of a picture is as published: its file gives their distance, and all have the same."""
    return _tower(
        component, "Qwen2.5-VL", has("v.blk.0.ffn_gate.weight", *ALL), lambda tensors: _renamed("visual.", QWEN_2_5)
    )


def qwen3_tower_file(component: str) -> SingleFile:
    def rename(tensors: Tensors) -> Rename:
        """The file numbers the mergers by the blocks that they stand behind, the modules in their order."""
        levels = enumerate(_levels(tensors))
        places = [(rf"^v\.deepstack\.{level}\.", f"deepstack_merger_list.{place}.") for place, level in levels]
        return _renamed("model.visual.", (*QWEN3, *places))

    def more(tensors: Tensors) -> dict[str, Any]:
        positions = shape(tensors, "v.position_embd.weight")[0]
        return {"num_position_embeddings": positions, "deepstack_visual_indexes": _levels(tensors)}

    return _tower(component, "Qwen3-VL", has("v.position_embd.weight", *ALL), rename, more)


def _tower(
    component: str,
    model: str,
    matches: Callable[[Tensors], bool],
    rename: Callable[[Tensors], Rename],
    more: Callable[[Tensors], dict[str, Any]] = lambda tensors: {},
) -> SingleFile:
    def config(tensors: Tensors) -> dict[str, Any]:
        patches = shape(tensors, "v.patch_embd.weight")
        sizes = {
            "depth": count(tensors, r"v\.blk\.(\d+)\."),
            "hidden_size": patches[0],
            "patch_size": patches[-1],
            "intermediate_size": shape(tensors, "v.blk.0.ffn_up.weight")[0],
            "out_hidden_size": shape(tensors, "mm.2.weight")[0],
        }
        return {"vision_config": sizes | more(tensors)}

    def fits(config: Mapping[str, Any], encoder: Mapping[str, Any]) -> bool:
        """The language model that reads it."""
        width = encoder.get("hidden_size") or encoder["text_config"]["hidden_size"]
        return bool(config["vision_config"]["out_hidden_size"] == width)

    return SingleFile(
        component, f"{model}'s vision tower in llama.cpp's names", matches, config=config, fits=fits,
        architecture=ARCHITECTURE, dense="", rename_among=rename, adds=TOWER,
    )  # fmt: skip


def _levels(tensors: Tensors) -> list[int]:
    """The blocks behind which mergers stand."""
    return sorted({int(found[1]) for name in tensors if (found := DEEPSTACK.match(name))})


def _renamed(prefix: str, rules: tuple[tuple[str, str], ...]) -> Rename:
    def rename(name: str) -> Iterator[RowRange]:
        join = None
        if found := PATCHES.match(name):
            name, join = "v.patch_embd.weight", Join(int(bool(found[1])), 2, axis=2)
        elif found := APART.search(name):
            name, join = APART.sub(r".attn_qkv.\2", name), Join("qkv".index(found[1]), 3)
        yield RowRange(prefix + substitute(name, rules), join=join)

    return rename
