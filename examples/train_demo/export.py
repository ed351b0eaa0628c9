"""Write a trained demo model as a folder like a real checkpoint of its family.

In: the run folders. Out: weights/demo/<family>/ with config files, tokenizers and bf16 tensors under the published
names; `demo.json` with the values for its manifest; and the training logs.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import latents
import models
import numpy as np
import torch
import train_text
import training
from safetensors.torch import save_file
from torch import Tensor
from vocabularies import write_json

DEMO = Path(__file__).resolve().parents[2] / "weights" / "demo"
RUNS = training.ROOT
VERSIONS = {"_diffusers_version": "0.42.1"}


def written(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value.to(torch.bfloat16).contiguous() for key, value in tensors.items()}
    save_file(values, folder / name, {"format": "pt"})
    (folder / name).chmod(0o644)


def averaged(run: str, strip: str = "") -> dict[str, Tensor]:
    """The weights of a run, or of the one that went on from it with open captions."""
    state = torch.load(training.latest(f"{run}_open", run))
    return {key.removeprefix(strip): value for key, value in state.items() if key.startswith(strip)}


def chosen(config: Any, names: list[str]) -> dict[str, Any]:
    """The named fields that this version of transformers still has."""
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def copied_tokenizer(run: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(training.latest(f"{run}_open", run).with_name("tokenizer").iterdir()):
        shutil.copy(path, folder / path.name)


def logs(folder: Path, runs: list[str]) -> None:
    """One line per entry of every run's log, with the run's name."""
    lines = []
    for run in itertools.chain.from_iterable((first, f"{first}_open") for first in runs):
        path = RUNS / run / "log.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        lines += [json.dumps({"run": run, **entry}) for entry in entries if "step" in entry]
    (folder / "training.jsonl").write_text("\n".join(lines) + "\n")


def scheduler(folder: Path, **values: Any) -> None:
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    standing = {"_class_name": "FlowMatchEulerDiscreteScheduler", **VERSIONS, "num_train_timesteps": 1000}
    write_json(folder / "scheduler/scheduler_config.json", {**standing, **values})


def pipeline_index(folder: Path, name: str, parts: dict[str, tuple[str, str]]) -> None:
    write_json(folder / "model_index.json", {"_class_name": name, **VERSIONS, **parts})


def flux() -> None:
    folder, run = DEMO / "flux", training.latest("flux_open", "flux_guided", "flux").parent.name
    flux_clip(folder)
    flux_t5(folder)
    config = models.flux_transformer().config
    names = (
        "attention_head_dim guidance_embeds in_channels joint_attention_dim num_attention_heads num_layers "
        "num_single_layers patch_size pooled_projection_dim axes_dims_rope"
    ).split()
    written(folder / "transformer", "diffusion_pytorch_model.safetensors", averaged(run))
    kept = {"_class_name": "FluxTransformer2DModel", **VERSIONS, **{name: config[name] for name in names}}
    write_json(folder / "transformer/config.json", kept)
    numbers = np.load(RUNS / "flux/statistics.npz")
    flux_vae(folder, float(numbers["mean"][0]), float(numbers["deviation"][0]))
    scheduler(
        folder,
        base_image_seq_len=256,
        base_shift=0.5,
        max_image_seq_len=4096,
        max_shift=1.15,
        shift=3.0,
        use_dynamic_shifting=False,
    )
    parts = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "text_encoder_2": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "T5TokenizerFast"),
        "transformer": ("diffusers", "FluxTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    pipeline_index(folder, "FluxPipeline", parts)
    demo = {"family": "flux", "steps": 8, "guidance": 2.0, "width": 128, "height": 128, "shift": 3.0}
    write_json(folder / "demo.json", {**demo, "max_sequence_length": train_text.T5_LENGTH})
    logs(folder, ["flux_vae", "flux_decoder", "clip", "t5", "flux", "flux_guided", "flux_night"])


def flux_clip(folder: Path) -> None:
    copied_tokenizer("clip", folder / "tokenizer")
    tokenizer = train_text.tokenizer_of("clip", folder / "tokenizer")
    c = models.clip_text(tokenizer).config
    names = (
        "attention_dropout bos_token_id dropout eos_token_id hidden_act hidden_size initializer_factor "
        "initializer_range intermediate_size layer_norm_eps max_position_embeddings num_attention_heads "
        "num_hidden_layers pad_token_id projection_dim vocab_size"
    ).split()
    tensors = averaged("clip", "model.")
    old_names = {"text_model." + key.removeprefix("text_model."): value for key, value in tensors.items()}
    written(folder / "text_encoder", "model.safetensors", old_names)
    standing = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "torch_dtype": "bfloat16"}
    write_json(folder / "text_encoder/config.json", {**standing, **chosen(c, names)})


def flux_t5(folder: Path) -> None:
    copied_tokenizer("t5", folder / "tokenizer_2")
    tokenizer = train_text.tokenizer_of("t5", folder / "tokenizer_2")
    c = models.t5_text(tokenizer).config
    names = (
        "d_ff d_kv d_model dropout_rate feed_forward_proj initializer_factor layer_norm_epsilon num_heads num_layers "
        "relative_attention_max_distance relative_attention_num_buckets vocab_size"
    ).split()
    tensors = averaged("t5", "model.")
    tensors.pop("encoder.embed_tokens.weight", None)  # the published files hold the table once
    written(folder / "text_encoder_2", "model.safetensors", tensors)
    standing = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "torch_dtype": "bfloat16",
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "eos_token_id": 1,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "num_decoder_layers": c.num_layers,
        "output_past": True,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    write_json(folder / "text_encoder_2/config.json", {**standing, **chosen(c, names)})


def flux_vae(folder: Path, mean: float, deviation: float) -> None:
    c = models.flux_vae().config
    names = (
        "act_fn block_out_channels down_block_types force_upcast in_channels latent_channels latents_mean latents_std "
        "layers_per_block mid_block_add_attention norm_num_groups out_channels sample_size up_block_types "
        "use_post_quant_conv use_quant_conv"
    ).split()
    written(folder / "vae", "diffusion_pytorch_model.safetensors", latents.codec("flux").state_dict())
    numbers = {"scaling_factor": 1 / deviation, "shift_factor": mean}
    kept = {"_class_name": "AutoencoderKL", **VERSIONS, **{name: c[name] for name in names}, **numbers}
    write_json(folder / "vae/config.json", kept)


def qwen() -> None:
    folder = DEMO / "qwen_image"
    qwen_text(folder)
    c = models.qwen_transformer().config
    names = (
        "attention_head_dim axes_dims_rope guidance_embeds in_channels joint_attention_dim num_attention_heads "
        "num_layers out_channels patch_size"
    ).split()
    written(folder / "transformer", "diffusion_pytorch_model.safetensors", averaged("qwen"))
    kept = {"_class_name": "QwenImageTransformer2DModel", **VERSIONS, **{name: c[name] for name in names}}
    write_json(folder / "transformer/config.json", kept)
    numbers = np.load(RUNS / "qwen/statistics.npz")
    written(folder / "vae", "diffusion_pytorch_model.safetensors", averaged("qwen_vae"))
    v = models.qwen_vae().config
    names = "attn_scales base_dim dim_mult dropout num_res_blocks temperal_downsample z_dim".split()
    kept = {"_class_name": "AutoencoderKLQwenImage", **VERSIONS, **{name: v[name] for name in names}}
    kept["latents_mean"] = [round(float(x), 6) for x in numbers["mean"]]
    kept["latents_std"] = [round(float(x), 6) for x in numbers["deviation"]]
    write_json(folder / "vae/config.json", kept)
    scheduler(
        folder,
        base_image_seq_len=256,
        base_shift=0.5,
        invert_sigmas=False,
        max_image_seq_len=8192,
        max_shift=0.9,
        shift=3.0,
        shift_terminal=None,
        time_shift_type="exponential",
        use_beta_sigmas=False,
        use_dynamic_shifting=False,
        use_exponential_sigmas=False,
        use_karras_sigmas=False,
    )
    parts = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "Qwen2_5_VLForConditionalGeneration"),
        "tokenizer": ("transformers", "Qwen2Tokenizer"),
        "transformer": ("diffusers", "QwenImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKLQwenImage"),
    }
    pipeline_index(folder, "QwenImagePipeline", parts)
    demo = {"family": "qwen_image", "steps": 12, "guidance": 2.0, "negative_prompt": " ", "width": 128, "height": 128}
    write_json(folder / "demo.json", {**demo, "shift": 3.0, "max_sequence_length": 64})
    logs(folder, ["qwen_vae", "qwen_text", "qwen", "qwen_lightning"])


def qwen_text(folder: Path) -> None:
    copied_tokenizer("qwen_text", folder / "tokenizer")
    tokenizer = train_text.tokenizer_of("qwen", folder / "tokenizer")
    c = models.qwen_text(tokenizer).config
    t, v = c.text_config, c.vision_config
    tensors = {
        key.replace("model.language_model.", "model."): value
        for key, value in averaged("qwen_text", "model.").items()
        if key.startswith("model.language_model.")
    }
    written(folder / "text_encoder", "model.safetensors", tensors)
    names = (
        "attention_dropout bos_token_id eos_token_id hidden_act hidden_size initializer_range intermediate_size "
        "max_position_embeddings num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps use_cache "
        "vocab_size"
    ).split()
    rope = t.rope_parameters
    vision = "depth hidden_act hidden_size in_channels intermediate_size num_heads out_hidden_size patch_size".split()
    vision += "spatial_merge_size temporal_patch_size tokens_per_second window_size fullatt_block_indexes".split()
    tokens = "image_token_id video_token_id vision_start_token_id vision_end_token_id".split()
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "bfloat16",
        **chosen(t, names),
        **chosen(c, tokens),
        "max_window_layers": t.num_hidden_layers,
        "rope_scaling": {"mrope_section": rope["mrope_section"], "rope_type": "default", "type": "default"},
        "rope_theta": rope["rope_theta"],
        "sliding_window": t.max_position_embeddings,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vision_config": {"model_type": "qwen2_5_vl_vision", **chosen(v, vision)},
    }
    write_json(folder / "text_encoder/config.json", config)


def hidream() -> None:
    from hidream import FIX_POINT, Config
    from train_hidream import NOISE_SCALE

    folder = DEMO / "hidream_o1"
    tensors = averaged("hidream", "net.")
    c = Config(tensors["model.language_model.embed_tokens.weight"].shape[0])
    copied_tokenizer("hidream", folder)
    written(folder, "model.safetensors", tensors)
    ids = json.loads((folder / "added_tokens.json").read_text())
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "dtype": "bfloat16",
        "eos_token_id": ids["<|im_end|>"],
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": c.intermediate_size,
        "max_position_embeddings": 8192,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": c.num_attention_heads,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": list(c.mrope_section),
            "rope_type": "default",
            "rope_theta": c.rope_theta,
        },
        "rope_theta": c.rope_theta,
        "use_cache": True,
        "vocab_size": c.vocab_size,
    }
    vision = {"depth": 0, "hidden_size": 64, "out_hidden_size": c.hidden_size, "model_type": "qwen3_vl"}
    vision |= {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "deepstack_visual_indexes": []}
    block = {"patch_size": c.patch_size, "bottleneck_dim": c.bottleneck_dim, "in_channels": 3}
    block |= {"timestep_freq_dim": 256, "fix_point": FIX_POINT, "t_eps": 0.001, "noise_scale": NOISE_SCALE}
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": vision,
        "hidream_o1": block,
    }
    write_json(folder / "config.json", config)
    common = {"family": "hidream_o1", "width": 128, "height": 128, "noise_scale": NOISE_SCALE}
    common |= {"patch_size": c.patch_size, "max_sequence_length": 64}
    dev = {**common, "sampler": "flash", "steps": 8, "guidance": 0.0, "shift": 3.0, "noise_clip": 2.5}
    full = {**common, "sampler": "unipc", "steps": 20, "guidance": 2.0, "shift": 3.0, "negative_prompt": " "}
    write_json(folder / "demo.json", {"dev": dev, "full": full})
    logs(folder, ["hidream"])


def loras() -> None:
    from train_lora import exported

    for kind in ("flux_night", "qwen_lightning"):
        if (RUNS / kind / "ema.pt").exists():
            exported(kind, averaged(kind))


if __name__ == "__main__":
    {"flux": flux, "qwen": qwen, "hidream": hidream, "loras": loras}[sys.argv[1]]()
