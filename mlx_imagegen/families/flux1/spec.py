"""FLUX.1, as the registry knows it."""

from pathlib import Path

from ...errors import ConfigError
from ...loading.folder import ModelFolder
from .. import FamilySpec, TokenRoles

PIPELINE, TRANSFORMER = "FluxPipeline", "FluxTransformer2DModel"
SINGLE_FILE = "flux1*.safetensors"  # the original layout
# Relatives with a wider input or more inputs: their folders would open, and draw nonsense.
RELATIVES = {
    "FluxFillPipeline": "FLUX.1-Fill",
    "FluxKontextPipeline": "FLUX.1-Kontext",
    "FluxControlPipeline": "FLUX.1-Depth or -Canny",
    "FluxPriorReduxPipeline": "FLUX.1-Redux",
}
# The same in the names of the original layout's files.
RELATIVE_FILES = {
    "kontext": "FLUX.1-Kontext",
    "fill": "FLUX.1-Fill",
    "depth": "FLUX.1-Depth",
    "canny": "FLUX.1-Canny",
    "redux": "FLUX.1-Redux",
}


def recognize(folder: ModelFolder) -> str | None:
    if folder.pipeline in RELATIVES:
        raise ConfigError(
            f"{folder.path}: model_index.json says {folder.pipeline}: this is {RELATIVES[folder.pipeline]}, which this "
            "library does not have. Take FLUX.1-dev or -schnell."
        )
    for name in (path.name for path in folder.files(SINGLE_FILE)):
        if relative := next((title for part, title in RELATIVE_FILES.items() if part in name.lower()), None):
            raise ConfigError(
                f"{folder.path} holds {name}: this is {relative}, which this library does not have. Take FLUX.1-dev or "
                "-schnell."
            )
    config, single = folder.config("transformer/config.json"), folder.files(SINGLE_FILE)
    if folder.pipeline not in (None, PIPELINE) or folder.transformer not in (None, TRANSFORMER):
        return None
    if not (folder.pipeline or folder.transformer or single):
        return None
    guided = config.get("guidance_embeds") if config else single and _guided(single[0])
    return "flux-dev" if guided else "flux-schnell"


def _guided(path: Path) -> bool:
    from ...loading.checkpoint import read_header

    return any(name.startswith("guidance_in.") for name in read_header(path)[0])


SPEC = FamilySpec(
    name="flux1",
    title="FLUX.1",
    opens="mlx_imagegen.families.flux1.family:Flux1",
    recognize=recognize,
    classes=(PIPELINE, TRANSFORMER),
    roles=TokenRoles(
        text=("context_embedder", "*.add_*_proj", "*.to_add_out", "*.ff_context.*"),
        joint=("single_transformer_blocks.*",),
        pads_prompt=True,
    ),
    components=("transformer", "text_encoder", "text_encoder_2", "vae"),
    single_files="mlx_imagegen.families.flux1.keys:SINGLE_FILES",
    tokenizers={"tokenizer": "tokenizer", "tokenizer_2": "tokenizer_2"},
    mirrors=("unsloth/FLUX.1-schnell",),
    lora_sign=r"(double|single)_blocks[._]\d|single_transformer_blocks[._]\d|ff_context|norm1_context",
    lora_prefixes={
        "lora_te1_": "text_encoder",
        "lora_te_": "text_encoder",
        "text_encoder.": "text_encoder",
        "text_encoders.clip_l.transformer.": "text_encoder",
        "lora_te3_": "text_encoder_2",
        "lora_te2_": "text_encoder_2",  # OneTrainer's
        "text_encoder_2.": "text_encoder_2",
        "text_encoders.t5xxl.transformer.": "text_encoder_2",
    },
)
