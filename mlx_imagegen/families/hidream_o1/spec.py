"""HiDream-O1-Image, as the registry knows it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ...loading.folder import ModelFolder
from .. import FamilySpec, TokenRoles

if TYPE_CHECKING:
    from ...hub.manifest import Manifest

ARCHITECTURE = "Qwen3VLForConditionalGeneration"
BLOCK = "hidream_o1"  # of config.json, in small models trained for tests


def recognize(folder: ModelFolder) -> str | None:
    """The three variants' files have the same names and numbers: only the folder's name can tell them apart."""
    if folder.pipeline is not None or (
        folder.architecture != ARCHITECTURE and BLOCK not in folder.config("config.json")
    ):
        return None
    name = folder.path.resolve().name.lower()
    return "hidream-o1-dev-2604" if "2604" in name else "hidream-o1-dev" if "dev" in name else "hidream-o1"


def own_numbers(manifest: "Manifest", folder: ModelFolder) -> "Manifest":
    """A small HiDream-O1, trained for small pictures and to a noise scale of its own, says so in its config.json."""
    block = folder.config("config.json").get(BLOCK)
    if not isinstance(block, dict):
        return manifest
    scale = block.get("noise_scale")
    own = {"sampling": manifest.extras["sampling"] | ({} if scale is None else {"noise_scale": [scale, scale]})}
    own["sizes"] = manifest.extras["sizes"] | {"least_patches": 1}
    return replace(manifest, extras=manifest.extras | own)


SPEC = FamilySpec(
    name="hidream_o1",
    title="HiDream-O1-Image",
    opens="mlx_imagegen.families.hidream_o1.family:HiDreamO1",
    recognize=recognize,
    classes=(ARCHITECTURE,),
    roles=TokenRoles(image=("*x_embedder.*", "*final_layer2.*"), single=("*t_embedder1.*",)),
    capabilities=frozenset({"image", "negative_prompt", "guidance", "references", "layout", "step_cache"}),
    components=("transformer",),
    single_files="mlx_imagegen.families.hidream_o1.keys:SINGLE_FILES",
    tokenizers={"tokenizer": "."},
    lora_sign=r"language_model[._]layers|final_layer2|t_embedder1|x_embedder[._]proj[12]",
    # The last norm has made some channels loud: an error in the layer that pixels come out of counts by its weight.
    norms={r"(.*\.)?final_layer2\.linear": r"\1language_model.norm.weight"},
    own_numbers=own_numbers,
)
