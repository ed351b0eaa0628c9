"""Draws a tiny HiDream-O1 in the repository's layout, with what transformers and diffusers make of it.

    python tests/references/hidream.py FOLDER [--seed N]

FOLDER gets model.safetensors and config.json (patches of 8 pixels, a `hidream_o1` block), a byte-level tokenizer and
preprocessor_config.json; ref0.png and ref1.png; and, as upstream computes them, the whole sequence under one mask:

- forward_t2i, forward_1ref: ids, positions, x_pred at three timesteps, the hidden state after every layer, prefix K/V;
- loop_unipc (two branches, diffusers' UniPC), loop_flash, loop_1ref_flow_match: noise, every step's z and x_pred,
picture.

Decoder, vision tower, text positions and image processor are transformers'; the mask, the patches and the target's
positions are written here, from the published description. Needs torch, diffusers and transformers.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from weight_descriptions import redraw

PATCH, FIX_POINT, SHOWN_SIDE = 8, 4096, 32
HIDDEN, BOTTLENECK, FREQUENCIES = 32, 12, 256
WIDTH, HEIGHT = 32, 24
SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    *("<|video_pad|>", "<|boi_token|>", "<|bor_token|>", "<|eor_token|>", "<|bot_token|>", "<|tms_token|>"),
]
IDS = {token: 256 + index for index, token in enumerate(SPECIAL)}
PROMPT = "A red fox, reading."


class Model(nn.Module):
    """transformers' Qwen3-VL with HiDream-O1's four extra layers, under the checkpoint's names."""

    def __init__(self) -> None:
        super().__init__()
        rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 5e6}
        text = {
            "vocab_size": 288, "hidden_size": HIDDEN, "intermediate_size": 40, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rope_parameters": rope,
        }  # fmt: skip
        vision = {
            "depth": 3, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": HIDDEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
        }  # fmt: skip
        named = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
        named |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
        config = Qwen3VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=False, **{k: IDS[v] for k, v in named.items()}
        )
        whole = Qwen3VLForConditionalGeneration(config)
        self.model, self.lm_head = whole.model, whole.lm_head
        values = 3 * PATCH**2
        self.model.t_embedder1 = nn.Module()
        self.model.t_embedder1.mlp = nn.Sequential(nn.Linear(FREQUENCIES, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN))
        self.model.x_embedder = nn.Module()
        self.model.x_embedder.proj1 = nn.Linear(values, BOTTLENECK, bias=False)
        self.model.x_embedder.proj2 = nn.Linear(BOTTLENECK, HIDDEN)
        self.model.final_layer2 = nn.Module()
        self.model.final_layer2.linear = nn.Linear(HIDDEN, values)
        self.config = config


@dataclass
class Sample:
    """One branch: what does not change from step to step."""

    ids: Tensor  # [T + 1]
    positions: Tensor  # [3, T + 1 + L + R]
    embeds: Tensor  # [1, T, D], pictures' features among them
    features: list[Tensor]  # deepstack, [image tokens, D] each
    references: Tensor  # [1, R, C p p]


def patchify(pixels: np.ndarray) -> Tensor:
    """[H, W, 3] in -1..1 -> [1, L, C p p]"""
    height, width, _ = pixels.shape
    parts = pixels.reshape(height // PATCH, PATCH, width // PATCH, PATCH, 3).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(np.ascontiguousarray(parts.reshape(1, -1, 3 * PATCH**2)))


def unpatchify(x: Tensor) -> np.ndarray:
    """[1, L, C p p] -> [H, W, 3]"""
    parts = x.reshape(HEIGHT // PATCH, WIDTH // PATCH, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2)
    return parts.reshape(HEIGHT, WIDTH, 3).numpy()


def read(model: Model, prompt: str, pictures: list[Image.Image], processor: Qwen2VLImageProcessor) -> Sample:
    """`pictures`: sizes fit already, so that the same one is read as patches and shown to the vision tower."""
    core, tokens, merged, pixels = model.model, [], [], []
    tokens += [IDS["<|im_start|>"], *b"user\n"]
    for picture in pictures:
        out = processor(images=picture.resize(shown_size(picture.size), Image.Resampling.LANCZOS), return_tensors="pt")
        _, rows, columns = out["image_grid_thw"][0].tolist()
        pixels.append((out["pixel_values"], out["image_grid_thw"]))
        merged.append((rows // 2, columns // 2))
        tokens += [IDS["<|vision_start|>"], *[IDS["<|image_pad|>"]] * (rows * columns // 4), IDS["<|vision_end|>"]]
    tokens += [*prompt.encode(), IDS["<|im_end|>"], *b"\n", IDS["<|im_start|>"], *b"assistant\n"]
    tokens += [IDS["<|boi_token|>"], IDS["<|tms_token|>"]]
    ids = torch.tensor([tokens])
    embeds = core.language_model.embed_tokens(ids[:, :-1])
    features: list[Tensor] = []
    if pictures:
        seen = [core.visual(values, grid_thw=grid) for values, grid in pixels]
        embeds[ids[:, :-1] == IDS["<|image_pad|>"]] = torch.cat([one.pooler_output for one in seen])
        features = [torch.cat(level) for level in zip(*(one.deepstack_features for one in seen), strict=True)]
    thw = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in merged]) if merged else None
    kinds = (ids == IDS["<|image_pad|>"]).int()
    positions = core.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=thw)[0][:, 0]
    start = FIX_POINT
    for size in [(WIDTH, HEIGHT), *(picture.size for picture in pictures)]:
        rows, columns = np.mgrid[0 : size[1] // PATCH, 0 : size[0] // PATCH].reshape(2, -1)
        grid = torch.from_numpy(np.stack([0 * rows, rows, columns]) + start)
        positions = torch.cat([positions, grid], dim=1)
        start = int(grid.max()) + 1
    patches = [patchify(np.asarray(picture, np.float32) / 255 * 2 - 1) for picture in pictures]
    return Sample(
        ids[0], positions, embeds, features, torch.cat(patches, dim=1) if patches else torch.zeros(1, 0, 3 * PATCH**2)
    )


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    ratio = size[0] / size[1]
    width = (SHOWN_SIDE**2 * ratio) ** 0.5
    return int(width / PATCH) * PATCH, int(width / ratio / PATCH) * PATCH


def forward(model: Model, sample: Sample, z: Tensor, timestep: float, keep: dict[str, Tensor] | None = None) -> Tensor:
    """The whole sequence at once: text attends causally, everything else to everything."""
    core = model.model
    clean = (torch.tensor(1.0) - torch.tensor(timestep) / 1000) * 1000
    frequencies = torch.exp(-np.log(10000.0) * torch.arange(FREQUENCIES // 2, dtype=torch.float32) / (FREQUENCIES // 2))
    angles = clean * frequencies
    time = core.t_embedder1.mlp(torch.cat([angles.cos(), angles.sin()])[None, None])
    image = core.x_embedder.proj2(core.x_embedder.proj1(torch.cat([z, sample.references], dim=1)))
    x = torch.cat([sample.embeds, time, image], dim=1)
    length, text = x.shape[1], sample.embeds.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[text:] = True
    mask = torch.zeros(1, 1, length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    extra = {}
    if sample.features:
        places = torch.zeros(1, length, dtype=torch.bool)
        places[0, :text] = sample.ids[:-1] == IDS["<|image_pad|>"]
        extra = {"visual_pos_masks": places, "deepstack_visual_embeds": sample.features}
    hooks = []
    if keep is not None:
        for index, layer in enumerate(core.language_model.layers):
            hooks.append(layer.register_forward_hook(_keeper(keep, f"layer{index}")))
    positions = sample.positions[:, None]
    last = core.language_model(
        inputs_embeds=x, position_ids=positions, attention_mask=mask, use_cache=False, **extra
    ).last_hidden_state
    for hook in hooks:
        hook.remove()
    for index, level in enumerate(sample.features if keep is not None else ()):
        keep[f"layer{index}"][extra["visual_pos_masks"]] += level
    return core.final_layer2.linear(last[:, text + 1 : text + 1 + z.shape[1]])


def _keeper(keep: dict[str, Tensor], name: str):
    def hook(_: nn.Module, __: object, result: object) -> None:
        keep[name] = result[0] if isinstance(result, tuple) else result

    return hook


def draw_forward(model: Model, sample: Sample, draw: torch.Generator) -> dict[str, Tensor]:
    out = {"input_ids": sample.ids[None].int(), "position_ids": sample.positions[:, None].int()}
    if sample.references.shape[1]:
        out["ref_patches"] = sample.references
    for index, timestep in enumerate((999.0, 515.0, 8.0)):
        z = torch.randn(1, (WIDTH // PATCH) * (HEIGHT // PATCH), 3 * PATCH**2, generator=draw) * (
            0.2 + 8 * timestep / 1000
        )
        keep: dict[str, Tensor] = {}
        out[f"t{index}.timestep"] = torch.tensor([1 - timestep / 1000])
        out[f"t{index}.z"] = z
        out[f"t{index}.x_pred"] = forward(model, sample, z, timestep, keep)
        if index == 0:
            out |= {f"t0.{name}": hidden for name, hidden in keep.items()}
    return out


def unipc(steps: int, shift: float) -> UniPCMultistepScheduler:
    """diffusers' solver on upstream's sigmas: shifted twice, with whole timesteps."""
    solver = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2, solver_type="bh2"
    )
    solver.set_timesteps(steps)

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return shift * sigma / (1 + (shift - 1) * sigma)

    sigmas = shifted(np.linspace(shifted(np.array(0.999)), 0, steps + 1)[:-1])
    solver.sigmas = torch.from_numpy(np.append(sigmas, 0.0)).float()
    solver.timesteps = torch.from_numpy(sigmas * 1000).long()
    return solver


def draw_loop(
    model: Model, samples: list[Sample], draw: torch.Generator, settings: dict[str, object]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`settings` have the names that generate() gives them."""
    scale = float(settings["noise_scale"])
    noise = torch.randn(1, 3, HEIGHT, WIDTH, generator=draw)
    z = scale * patchify(noise[0].permute(1, 2, 0).numpy())
    out = {"noise_unit": noise, "z0": z}
    solver = unipc(int(settings["steps"]), float(settings["shift"])) if settings["sampler"] == "unipc" else None
    timesteps = solver.timesteps.tolist() if solver else list(settings["timesteps"])
    sigmas = [t / 1000 for t in timesteps] + [0.0]
    for index, timestep in enumerate(timesteps):
        sigma = max(timestep / 1000, 0.001)
        pictures = [forward(model, sample, z, timestep) for sample in samples]
        directions = [(picture - z) / sigma for picture in pictures]
        v = (
            directions[0]
            if len(samples) == 1
            else directions[1] + settings["guidance"] * (directions[0] - directions[1])
        )
        for name, picture in zip(("cond", "uncond"), pictures, strict=False):
            out[f"step{index}.{name}.x_pred"] = picture
        if solver:
            z = solver.step(-v, solver.timesteps[index], z).prev_sample
        elif settings["sampler"] == "flow_match":
            z = z - (sigmas[index + 1] - sigma) * v
        else:
            fresh = torch.randn(z.shape, generator=draw)
            limit = float(settings["noise_clip"]) * fresh.std()
            out[f"step{index}.noise"] = fresh
            following = sigmas[index + 1]
            z = following * scale * fresh.clamp(-limit, limit) + (1 - following) * pictures[0]
        out[f"step{index}.z"] = z
    pixels = np.clip((unpatchify(z) + 1) / 2 * 255, 0, 255).round().astype(np.uint8)
    out["image_uint8"] = torch.from_numpy(pixels)
    return out, {"settings": json.dumps(settings)}


def write_tokenizer(folder: Path) -> None:
    """Bytes, and the special tokens."""
    letters = dict(zip(_byte_letters(), range(256), strict=True))
    engine = Tokenizer(BPE(vocab=letters, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}) + "\n")


def _byte_letters() -> list[str]:
    """Byte-level BPE's letter for every byte, in the bytes' order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def write_config(folder: Path, model: Model) -> None:
    block = {
        "patch_size": PATCH, "in_channels": 3, "bottleneck_dim": BOTTLENECK, "timestep_freq_dim": FREQUENCIES,
        "fix_point": FIX_POINT, "t_eps": 0.001, "noise_scale": 8.0, "condition_image_size": SHOWN_SIDE,
        "special_token_ids": IDS,
    }  # fmt: skip
    config = model.config.to_dict() | {"architectures": ["Qwen3VLForConditionalGeneration"], "hidream_o1": block}
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n", encoding="utf-8")
    processor = {
        "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "size": {"shortest_edge": 64, "longest_edge": 65536}, "image_processor_type": "Qwen2VLImageProcessorFast",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """A tensor's mean, and a spread at which every part of the model shows in its output."""
    size = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
    return float("norm" in name and "weight" in name), size * (0.25 if "x_embedder.proj1" in name else 1)


def picture(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    small = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    draw = torch.Generator().manual_seed(options.seed)
    model = Model().eval().float()
    file = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, file)
    redraw(file, spread, options.seed)
    model.load_state_dict(load_file(file))
    write_config(folder, model)
    write_tokenizer(folder)
    one = picture(
        np.random.default_rng(options.seed), (WIDTH, HEIGHT)
    )  # of the target's size, so that it is not resized
    one.save(folder / "ref0.png")
    processor = Qwen2VLImageProcessor.from_pretrained(folder)
    words, nothing = read(model, PROMPT, [], processor), read(model, " ", [], processor)
    shown = read(model, PROMPT, [one], processor)
    save_file(draw_forward(model, words, draw), folder / "forward_t2i.safetensors")
    save_file(draw_forward(model, shown, draw), folder / "forward_1ref.safetensors")
    common = {"noise_scale": 8.0, "width": WIDTH, "height": HEIGHT, "prompt": PROMPT}
    fixed = {"guidance": 0.0, "timesteps": [999, 836, 515, 110]}
    loops = {
        "unipc": ([words, nothing], {"sampler": "unipc", "steps": 4, "shift": 3.0, "guidance": 5.0}),
        "flash": ([words], fixed | {"sampler": "flash", "noise_scale": 7.5, "noise_clip": 1.5}),
        "1ref_flow_match": ([shown], fixed | {"sampler": "flow_match"}),
    }
    for name, (samples, settings) in loops.items():
        tensors, metadata = draw_loop(model, samples, draw, common | settings)
        save_file(
            {key: value.contiguous() for key, value in tensors.items()}, folder / f"loop_{name}.safetensors", metadata
        )


if __name__ == "__main__":
    main()
