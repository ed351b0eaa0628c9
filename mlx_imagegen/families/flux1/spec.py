"""FLUX.1, as the registry knows it."""

from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...loading.folder import ModelFolder
from .. import FamilySpec, TokenRoles

TRANSFORMER = "FluxTransformer2DModel"
PIPELINES = ("FluxPipeline", "FluxFillPipeline", "FluxKontextPipeline", "FluxControlPipeline")
REDUX = "FluxPriorReduxPipeline"
SINGLE_FILE = "flux1*.safetensors"  # the original layout
# Models whose tensors and configs are another's: words in a folder's, repository's or file's name tell them.
ALIKE = {"flux-dev": ("kontext", "krea"), "flux-depth-dev": ("canny",)}


def recognize(folder: ModelFolder) -> str | None:
    if folder.pipeline == REDUX:
        raise ConfigError(
            f"{folder.path}: model_index.json says {REDUX}: FLUX.1-Redux draws nothing by itself. Choose flux-dev or "
            "flux-schnell, and give this folder with each picture of redux."
        )
    single = folder.files(SINGLE_FILE)
    if folder.pipeline not in (None, *PIPELINES) or folder.transformer not in (None, TRANSFORMER):
        return None
    if not (folder.pipeline or folder.transformer or single):
        return None
    config = folder.config("transformer/config.json") or (_config_of(single[0]) if single else {})
    if not config.get("guidance_embeds"):
        return "flux-schnell"
    width = config.get("in_channels")
    out = config.get("out_channels") or width
    if (
        isinstance(width, int) and isinstance(out, int) and width > out
    ):  # further channels: a control picture's are as many, a hole's are more
        return by_name("flux-depth-dev", *_names(folder)) if width == 2 * out else "flux-fill-dev"
    return "flux-kontext-dev" if folder.pipeline == "FluxKontextPipeline" else by_name("flux-dev", *_names(folder))


def by_name(model: str, *names: str) -> str:
    """The model, or the one like it that a name has a word of."""
    return next((f"flux-{word}-dev" for word in ALIKE[model] if any(word in name.lower() for name in names)), model)


def _names(folder: ModelFolder) -> list[str]:
    """The folder's, its repository's and its single file's."""
    path = folder.path.resolve()
    names = [path.name, *(file.name for file in folder.files(SINGLE_FILE))]
    return names + ([path.parents[1].name] if path.parent.name == "snapshots" else [])  # of a downloaded repository


def _config_of(path: Path) -> dict[str, Any]:
    """What transformer/config.json would say, where there is only the original file."""
    from ...loading.checkpoint import read_header

    tensors = read_header(path)[0]
    shapes = {name: tensors[name].shape for name in ("img_in.weight", "final_layer.linear.weight") if name in tensors}
    return {
        "guidance_embeds": any(name.startswith("guidance_in.") for name in tensors),
        "in_channels": shapes.get("img_in.weight", (0, 0))[1],
        "out_channels": shapes.get("final_layer.linear.weight", (0,))[0],
    }


SPEC = FamilySpec(
    name="flux1",
    title="FLUX.1",
    opens="mlx_imagegen.families.flux1.family:Flux1",
    recognize=recognize,
    classes=(*PIPELINES, TRANSFORMER),
    roles=TokenRoles(
        text=("context_embedder", "*.add_*_proj", "*.to_add_out", "*.ff_context.*"),
        joint=("single_transformer_blocks.*",),
        image=("proj_out",),
        pads_prompt=True,
    ),
    capabilities=frozenset(
        {"image", "negative_prompt", "guidance", "references", "control", "mask_input", "step_cache"}
    ),
    components=("transformer", "text_encoder", "text_encoder_2", "vae"),
    fits_float16=True,
    single_files="mlx_imagegen.families.flux1.keys:SINGLE_FILES",
    tokenizers={"tokenizer": "tokenizer", "tokenizer_2": "tokenizer_2"},
    mirrors=("unsloth/FLUX.1-schnell",),
    lora_sign=r"_blocks[._]\d+[._]((img|txt)_mod|modulation)[._]lin|norm1_context|ff_context[._]net|processor\.(qkv|proj)_lora"
    r"|single_transformer_blocks[._]\d+[._](proj_mlp|proj_out|norm[._]linear|attn[._]to_[qkv](?![a-z]))",
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
