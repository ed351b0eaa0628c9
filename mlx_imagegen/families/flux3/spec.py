"""FLUX.3, as the registry knows it."""

from ...loading.folder import ModelFolder
from .. import FamilySpec, TokenRoles

TRANSFORMER = "Flux3Transformer2DModel"
PIPELINES = ("Flux3ModularPipeline", "Flux3DistilledModularPipeline")  # folders have a modular_model_index.json


def recognize(folder: ModelFolder) -> str | None:
    if folder.transformer != TRANSFORMER:
        return None
    distilled = folder.config("transformer/config.json").get("flow_map")
    return "flux3-klein" if distilled else "flux3-klein-base"


SPEC = FamilySpec(
    name="flux3",
    title="FLUX.3",
    opens="mlx_imagegen.families.flux3.family:Flux3",
    recognize=recognize,
    classes=(TRANSFORMER, *PIPELINES),
    roles=TokenRoles(
        text=("context_embedder", "txt_mode_blocks.*"),
        joint=("single_transformer_blocks.*",),
        image=("x_embedders.image", "mode_blocks.image.*", "proj_out"),
        references=("x_embedders.image_cond", "mode_blocks.image_cond.*"),
        apart=("mode_blocks.*", "txt_mode_blocks.*"),
    ),
    single_files="mlx_imagegen.families.flux3.keys:SINGLE_FILES",
    tokenizers={"tokenizer": "text_encoder"},
    packaged_tokenizers={"tokenizer": "qwen3"},
    capabilities=frozenset({"image", "negative_prompt", "guidance", "references", "step_cache"}),
    lora_sign=r"mode_blocks[._]|early_stream_modulations|single_stream_modulations|single_blocks[._]\d+[._](q_proj|mlp_in)"
    r"|single_transformer_blocks[._]\d+[._](ff[._]|attn[._]to_out[._]0)",
)
