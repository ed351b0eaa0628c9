"""Qwen-Image-2.1 and -Turbo, as the registry knows them."""

from ...loading.folder import ModelFolder
from .. import FamilySpec, TokenRoles

PIPELINE = "QwenImage21Pipeline"
TRANSFORMER = "QwenImage21Transformer2DModel"
SIGMAS = "sample_sigmas"  # of model_index.json: only the distilled model has its own


def recognize(folder: ModelFolder) -> str | None:
    """The two models' tensors are alike in every name and shape."""
    if folder.pipeline != PIPELINE and not (folder.pipeline is None and folder.transformer == TRANSFORMER):
        return None
    return "qwen-image-2.1-turbo" if folder.config("model_index.json").get(SIGMAS) else "qwen-image-2.1"


SPEC = FamilySpec(
    name="qwen_image_21",
    title="Qwen-Image-2.1",
    opens="mlx_imagegen.families.qwen_image_21.family:QwenImage21",
    recognize=recognize,
    classes=(PIPELINE, TRANSFORMER),
    # A step runs the picture's own tokens alone: text and references have passed before it.
    roles=TokenRoles(text=("txt_in.*",)),
    capabilities=frozenset({"image", "negative_prompt", "guidance", "references", "transparent", "step_cache"}),
    single_files="mlx_imagegen.families.qwen_image_21.keys:SINGLE_FILES",
    tokenizers={"processor": "processor"},
    packaged_tokenizers={"processor": "qwen3"},
    lora_sign=r"transformer_blocks[._]\d+[._]img_mlp[._](proj|out|gate_layer|gate_up)\b",
)
