"""FLUX.2, as the registry knows it."""

from ...loading.folder import ModelFolder
from .. import FamilySpec, TokenRoles

KLEIN, KEEPING, DEV = "Flux2KleinPipeline", "Flux2KleinKVPipeline", "Flux2Pipeline"
TRANSFORMER = "Flux2Transformer2DModel"
LARGER_HEADS = 32  # klein 9B's; 4B has 24


def recognize(folder: ModelFolder) -> str | None:
    if folder.pipeline not in (None, KLEIN, KEEPING, DEV) or folder.transformer not in (None, TRANSFORMER):
        return None
    if not (folder.pipeline or folder.transformer):
        return None
    config = folder.config("transformer/config.json")
    if folder.pipeline == DEV or config.get("guidance_embeds"):
        return "flux2-dev"
    if folder.pipeline == KEEPING:
        return "flux2-klein-9b-kv"
    # Nothing in the weights tells the distilled ones from the others.
    base = folder.pipeline == KLEIN and not folder.config("model_index.json").get("is_distilled")
    heads = config.get("num_attention_heads")  # what is no number is refused when the config is read
    size = "9b" if isinstance(heads, int) and heads >= LARGER_HEADS else "4b"
    return f"flux2-klein-{'base-' if base else ''}{size}"


SPEC = FamilySpec(
    name="flux2",
    title="FLUX.2",
    opens="mlx_imagegen.families.flux2.family:Flux2",
    recognize=recognize,
    classes=(KLEIN, KEEPING, DEV, TRANSFORMER),
    roles=TokenRoles(
        text=("context_embedder", "*.add_*_proj", "*.to_add_out", "*.ff_context.*"),
        joint=("single_transformer_blocks.*",),
        image=("proj_out",),
        fused_queries=("*.to_qkv_mlp_proj",),
        pads_prompt=True,
    ),
    single_files="mlx_imagegen.families.flux2.keys:SINGLE_FILES",
    tokenizers={"tokenizer": "tokenizer"},
    packaged_tokenizers={"tokenizer": "qwen3"},
    capabilities=frozenset({"image", "negative_prompt", "guidance", "references", "step_cache"}),
    lora_sign=r"(double|single)_stream_modulation[._]|double_stream_modulation|to_qkv_mlp_proj|ff_context[._]linear_",
)
