"""Qwen-Image, as the registry knows it."""

from ...loading.folder import ModelFolder
from .. import FamilySpec, TokenRoles

# diffusers' pipeline -> the nearest manifest.
PIPELINES = {
    "QwenImagePipeline": "qwen-image",
    "QwenImageEditPipeline": "qwen-image-edit",
    "QwenImageEditPlusPipeline": "qwen-image-edit-2509",
    "QwenImageLayeredPipeline": "qwen-image-layered",
}
TRANSFORMER = "QwenImageTransformer2DModel"


def recognize(folder: ModelFolder) -> str | None:
    if folder.pipeline not in PIPELINES and not (folder.pipeline is None and folder.transformer == TRANSFORMER):
        return None
    config = folder.config("transformer/config.json")
    if config.get("use_layer3d_rope"):
        return "qwen-image-layered"
    if config.get("zero_cond_t"):
        return "qwen-image-edit-2511"
    return PIPELINES.get(folder.pipeline or "", "qwen-image")


SPEC = FamilySpec(
    name="qwen_image",
    title="Qwen-Image",
    opens="mlx_imagegen.families.qwen_image.family:QwenImage",
    recognize=recognize,
    classes=(*PIPELINES, TRANSFORMER),
    roles=TokenRoles(text=("txt_in", "*.add_*_proj", "*.to_add_out", "*.txt_mlp.*"), image=("proj_out",)),
    capabilities=frozenset({"image", "negative_prompt", "guidance", "references", "step_cache"}),
    single_files="mlx_imagegen.families.qwen_image.keys:SINGLE_FILES",
    tokenizers={"tokenizer": "tokenizer"},
    packaged_tokenizers={"tokenizer": "qwen2"},
    # Draw Things reports activations of 20 million: it divides what attention reads by 8 and gives by up to 16 more,
    # and what the feed-forwards give by up to 512. In bfloat16 these are two thirds of a block's products.
    overflowing=("*.attn.to_[qkv]", "*.attn.add_[qkv]_proj", "*.attn.to_out.0", "*.attn.to_add_out", "*_mlp.net.2"),
    lora_sign=r"transformer_blocks[._]\d+[._](img|txt)_(mlp[._]net|mod)",
)
