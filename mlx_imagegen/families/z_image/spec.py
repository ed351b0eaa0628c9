"""Z-Image, as the registry knows it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...escaping import quoted
from ...loading.config import read_json
from ...loading.folder import ModelFolder
from .. import FamilySpec, TokenRoles

if TYPE_CHECKING:
    from ...hub.manifest import Manifest

PIPELINE, OMNI_PIPELINE, TRANSFORMER = "ZImagePipeline", "ZImageOmniPipeline", "ZImageTransformer2DModel"
# A relative with more inputs: its folders would open, and draw nonsense.
WITH_NETWORK = ("ZImageControlNetPipeline", "ZImageControlNetInpaintPipeline")
SCHEDULER = "scheduler/scheduler_config.json"
# The base model's schedule is shifted by 6, Turbo's by 3; nothing else in their folders tells them apart.
LARGEST_TURBO_SHIFT = 4.0


def recognize(folder: ModelFolder) -> str | None:
    if folder.pipeline in WITH_NETWORK:
        raise ConfigError(
            f"{folder.path}: model_index.json says {folder.pipeline}: this is Z-Image with a ControlNet, which this "
            "library does not have. Take Z-Image or Z-Image-Turbo."
        )
    if folder.pipeline not in (None, PIPELINE, OMNI_PIPELINE) or folder.transformer not in (None, TRANSFORMER):
        return None
    if not (folder.pipeline or folder.transformer):
        return None
    if is_omni(folder):
        return "z-image"
    path = folder.path / SCHEDULER
    shift = read_json(path).get("shift", 1.0) if path.is_file() else 1.0
    if isinstance(shift, bool) or not isinstance(shift, int | float):
        raise ConfigError(f"{path}: field 'shift' is {quoted(shift)}, where a number is needed.")
    return "z-image" if shift > LARGEST_TURBO_SHIFT else "z-image-turbo"


def is_omni(folder: ModelFolder) -> bool:
    """The edition that reads reference pictures."""
    width = folder.config("transformer/config.json").get("siglip_feat_dim")
    return folder.pipeline == OMNI_PIPELINE or width is not None


def own_numbers(manifest: "Manifest", folder: ModelFolder) -> "Manifest":
    """The Omni edition is not published, and has no manifest of its own."""
    if not is_omni(folder):
        return manifest
    omni = manifest.extras["omni"]
    return replace(manifest, title=omni["title"], edits=True, extras=manifest.extras | omni)


SPEC = FamilySpec(
    name="z_image",
    title="Z-Image",
    opens="mlx_imagegen.families.z_image.family:ZImage",
    recognize=recognize,
    classes=(PIPELINE, OMNI_PIPELINE, TRANSFORMER),
    roles=TokenRoles(joint=("layers.*",), image=("all_final_layer.*",), apart=("noise_refiner.*",), multiple=32),
    capabilities=frozenset({"image", "negative_prompt", "guidance", "references", "step_cache"}),
    own_numbers=own_numbers,
    single_files="mlx_imagegen.families.z_image.keys:SINGLE_FILES",
    tokenizers={"tokenizer": "tokenizer"},
    packaged_tokenizers={"tokenizer": "qwen3"},
    lora_sign=r"(noise|context|siglip)_refiner[._]\d|layers[._]\d+[._](attention[._](to_|qkv|out)|feed_forward[._]w\d)",
)
