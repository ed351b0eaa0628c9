"""Which program wrote a LoRA file, and for which model, as far as its keys, its shapes and its metadata say.

Must not know: the model that is open, what changes are.
"""

import re
from collections.abc import Collection, Mapping

from ..families import family_specs
from .deltas import Entry

# What a file's keys say about the program that wrote it; the first that matches.
FORMATS = (
    ("Black Forest Labs' control LoRA", r"\.(query|key)_norm\.scale$"),
    ("XLabs", r"\.processor\.(qkv|proj)_lora"),
    ("LyCORIS", r"^lycoris_"),
    ("flattened diffusers names (OneTrainer)", r"^lora_transformer_"),
    ("kohya sd-scripts", r"^lora_unet_(double|single)_blocks_|^lora_te\d?_"),
    ("musubi-tuner", r"^lora_unet_"),
    ("PEFT adapter", r"^base_model\.model\."),
    ("diffusers PEFT (also ai-toolkit for FLUX.1)", r"^(transformer|text_encoder(_2)?)\..*\.lora_[AB]"),
    ("diffusers names with down and up", r"^(transformer|text_encoder(_2)?)\."),
    ("ComfyUI", r"^(diffusion_model\.(double|single)_blocks\.|text_encoders\.)"),
    ("ai-toolkit", r"^diffusion_model\."),
    ("DiffSynth", r"\.lora_[AB](\.default)?\.weight$"),
    ("bare names with down and up (lightx2v Lightning)", r"\.lora_(down|up)\.weight$"),
)
# What only one other model has among its modules' names, so that a LoRA for it can be named; the first that matches.
# The signs of this library's families come after the first table: parts of them are also in those models' names.
OTHER_MODELS = (
    ("HiDream-I1", r"(double|single)_stream_blocks"),
    ("HunyuanVideo", r"(img|txt)_mlp[._]fc\d|\.(img|txt)_attn_qkv|individual_token_refiner"),
    ("Chroma", r"distilled_guidance_layer"),
)
FLUXES = "FLUX.1, FLUX.2 or FLUX.3"
ATTENTION_NAMES = "FLUX.1, FLUX.2 or Qwen-Image"  # the same names and, at full size, shapes
MODELS_OF_COMMON_NAMES = (
    (FLUXES, r"(double|single)_blocks[._]\d|single_transformer_blocks[._]\d"),
    ("Stable Diffusion 3", r"joint_blocks"),
    ("Stable Diffusion or SDXL", r"(down|up|input|output)_blocks?[._]|mid(dle)?_block"),
    ("Wan", r"blocks[._]\d+[._](self|cross)_attn"),
    ("Z-Image", r"(noise|context)_refiner|layers[._]\d+[._]attention"),
    (ATTENTION_NAMES, r"transformer_blocks[._]\d+[._]attn"),
    # Files for text encoders alone; models share these.
    ("Stable Diffusion or SDXL", r"clip_g\.|^lora_te2_text_model|^text_encoder_2\.text_model"),
    ("FLUX.1", r"^lora_te[23]_encoder_block|^text_encoder_2\.encoder\.block|t5xxl\."),
    ("FLUX.1 or Stable Diffusion", r"^lora_te1?_text_model|^text_encoder\.|clip_l\."),
)
QWEN_IMAGE_21_WIDTH = 4096  # and FLUX.2 [klein] 9B's; others' is 3072 or, of FLUX.2 [dev], 6144
FLUX_DOUBLE_BLOCKS = 19  # a transformer_blocks number from here on cannot be FLUX.1's
FLUX2_DOUBLE_BLOCKS = 8  # nor a double_blocks number from here on FLUX.2's
# Layers that both have, in the original's names: rows to columns.
FLUX_WIDENING = re.compile(r"(single_blocks[._]\d+[._]linear1|double_blocks[._]\d+[._](img|txt)_mlp[._]0)$")
FLUX_BY_RATIO = {7: "FLUX.1", 4: "FLUX.1", 9: "FLUX.2", 6: "FLUX.2"}
# `modelspec.architecture` or `ss_base_model_version`, as trainers write them -> family
ARCHITECTURES = (
    ("FLUX.2", r"flux-?2"), ("FLUX.1", r"flux"), ("Qwen-Image-2.1", r"qwen[-_ ]?image[-_ ]?2\.?1"),
    ("Qwen-Image", r"qwen"), ("HiDream-O1-Image", r"hidream-?o1"),
    ("Stable Diffusion 3", r"stable-diffusion-3|sd3"), ("Stable Diffusion or SDXL", r"stable-diffusion|sdxl|sd_v\d"),
)  # fmt: skip


def trainer_of(keys: Collection[str]) -> str:
    return _first_sign(FORMATS, keys) or "unknown"


def model_of(keys: Collection[str], entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> str | None:
    """By its title, or several with an "or" between them; None where nothing is known."""
    # The latest first: FLUX.3 has FLUX.1's names next to its own.
    ours = [(spec.title, spec.lora_sign) for spec in reversed(family_specs())]
    by_keys = _first_sign((*OTHER_MODELS, *ours, *MODELS_OF_COMMON_NAMES), keys)
    if by_keys and " or " not in by_keys:
        return by_keys
    if by_keys == ATTENTION_NAMES and (model := _model_of_attention(keys, entries)):
        return model
    if by_keys == FLUXES and (generation := _flux_generation(keys, entries)):
        return generation
    words = (str(metadata.get(key, "")) for key in ("modelspec.architecture", "ss_base_model_version"))
    return _first_sign(ARCHITECTURES, [" ".join(words).lower()]) or by_keys


def _first_sign(signs: Collection[tuple[str, str]], texts: Collection[str]) -> str | None:
    return next((name for name, sign in signs if any(re.search(sign, text) for text in texts)), None)


def _model_of_attention(keys: Collection[str], entries: Mapping[str, Entry]) -> str | None:
    """Of a LoRA for attention alone, by its layers' width and how many blocks there are."""
    last = _last_block(keys, "transformer_blocks")
    if any(entry.shape and entry.shape[-1] == QWEN_IMAGE_21_WIDTH for entry in entries.values()):
        return "Qwen-Image-2.1" if last >= FLUX2_DOUBLE_BLOCKS else "FLUX.2 or Qwen-Image-2.1"
    return "Qwen-Image" if last >= FLUX_DOUBLE_BLOCKS else None


def _flux_generation(keys: Collection[str], entries: Mapping[str, Entry]) -> str | None:
    """Of a LoRA for names that both have, by the shapes of layers that widen, or by how many blocks there are."""
    shapes = [entry.shape for name, entry in entries.items() if FLUX_WIDENING.search(name)]
    ratios = {shape[0] / shape[1] for shape in shapes if shape and len(shape) == 2}
    if found := {FLUX_BY_RATIO[int(ratio)] for ratio in ratios if ratio in FLUX_BY_RATIO}:
        return found.pop() if len(found) == 1 else None
    return "FLUX.1" if _last_block(keys, "double_blocks") >= FLUX2_DOUBLE_BLOCKS else None


def _last_block(keys: Collection[str], blocks: str) -> int:
    return max((int(number) for key in keys for number in re.findall(rf"{blocks}[._](\d+)", key)), default=0)
