"""LoRA files: located, opened, their tensors grouped by module; which trainer's format, and for which model.

In: a path, or a repository and file. Out: a `LoraFile`. Data is read once to refuse NaN; all else is in the header.
Must not know: the model that is open, arithmetic.
"""

import functools
import glob
import hashlib
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import parse_json, read_json
from ..errors import LoraError, MissingFileError
from ..escaping import listed, quoted, shown
from ..families import family_specs
from ..hub.comfy import LORAS, chosen_folder
from ..hub.download import REPOSITORY, Download, Notify, fetch_files, notify_stderr
from ..hub.record import revision_of
from ..hub.snapshots import cache_folder, cached
from ..loading.checkpoint import Checkpoint, Tensor, read_header
from ..paths import expanded, visible
from .deltas import Entry, check_finite
from .names import ADAPTER, split_key

ADAPTER_METADATA = "lora_adapter_metadata"  # diffusers' key in a file's own metadata
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# owner/name:file, or owner/name@revision:file
REMOTE = re.compile(rf"(?P<repo>{REPOSITORY.pattern})(@(?P<revision>[^:@]+))?:(?P<file>.+)")
# PEFT's ways to begin that take the LoRA's first values out of the base, or pack it: the file alone does not say how.
OTHER_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga")
PEFT_FILE, PEFT_CONFIG = "adapter_model.", "adapter_config.json"  # PEFT's own pair
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
PATTERN_LENGTH, PATTERN_REPEATS = 500, 3  # of a regular expression in an adapter's configuration
LARGEST_RANK, LARGEST_ALPHA = 2**16, 1e9
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


@dataclass(frozen=True)
class AdapterConfig:
    """PEFT's own numbers: in the file's metadata (diffusers) or in an adapter_config.json next to it."""

    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "AdapterConfig":
        ranks = {_pattern(name): _positive(value) for name, value in dict(data.get("rank_pattern") or {}).items()}
        alphas = {_pattern(name): _finite(value) for name, value in dict(data.get("alpha_pattern") or {}).items()}
        alpha = _finite(data.get("lora_alpha", data.get("alpha", data["r"])))
        rslora = data.get("use_rslora") or False
        if not isinstance(rslora, bool):  # "false" would count as true
            raise ValueError(f"use_rslora is {quoted(rslora)}")
        return cls(_positive(data["r"]), alpha, ranks, alphas, rslora)

    def scale(self, module: str, rank: int | None) -> float:
        rank = rank or _of_pattern(self.rank_pattern, module, self.r)
        alpha: float = _of_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class LoraFile:
    path: Path
    requested_as: str  # what the user called it
    published: str | None  # owner/name@commit:file, which is this file for good; None for a file of this machine
    entries: Mapping[str, Entry]  # by the module's name as the file writes it
    unknown_keys: tuple[str, ...]  # keys whose ending is not known
    metadata: Mapping[str, str]
    checkpoint: Checkpoint
    stamp: str  # of the file when it was opened

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, metadata: Mapping[str, str], requested_as: str, published: str | None = None
    ) -> "LoraFile":
        """A file's tensors by the modules they belong to; from the header alone."""
        path = checkpoint.where
        groups, unknown_keys = _group(checkpoint)
        configs = _configs(path, metadata)
        entries = {name: Entry(name, parts, _configured(configs, name)) for name, parts in groups.items()}
        return cls(path, requested_as, published, entries, tuple(unknown_keys), metadata, checkpoint, checkpoint.stamp)

    @property
    def canonical_name(self) -> str:
        """Its name in records: valid from every folder, and for good."""
        return self.published or str(expanded(self.requested_as).absolute())

    @property
    def digest(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check_unchanged(self) -> None:
        """Raises for a file that was rewritten: reading it at its former offsets would silently give other numbers."""
        try:
            unchanged = self.checkpoint.stamp == self.stamp
        except OSError:
            unchanged = False
        if not unchanged:
            raise LoraError(
                f"{self.requested_as} was changed or removed since it was opened, and its weights are needed again. "
                "Put it in place and give it to set_lora again, or give others."
            )

    @property
    def format(self) -> str:
        return next((name for name, sign in FORMATS if self._any(sign)), "unknown")

    @property
    def family(self) -> str | None:
        """The model whose modules the keys name, as far as the file says."""
        # The latest first: FLUX.3 has FLUX.1's names next to its own.
        ours = [(spec.title, spec.lora_sign) for spec in reversed(family_specs())]
        signs = (*OTHER_MODELS, *ours, *MODELS_OF_COMMON_NAMES)
        by_keys = next((name for name, sign in signs if self._any(sign)), None)
        if by_keys and " or " not in by_keys:
            return by_keys
        if by_keys == ATTENTION_NAMES and (model := self._model_of_attention()):
            return model
        if by_keys == FLUXES and (generation := self._flux_generation()):
            return generation
        words = (str(self.metadata.get(key, "")) for key in ("modelspec.architecture", "ss_base_model_version"))
        metadata = " ".join(words).lower()
        return next((name for name, sign in ARCHITECTURES if re.search(sign, metadata)), by_keys)

    def _model_of_attention(self) -> str | None:
        """Of a LoRA for attention alone, by its layers' width and how many blocks there are."""
        numbers = [int(n) for key in self.checkpoint for n in re.findall(r"transformer_blocks[._](\d+)", key)]
        if any(entry.shape and entry.shape[-1] == QWEN_IMAGE_21_WIDTH for entry in self.entries.values()):
            return "Qwen-Image-2.1" if max(numbers) >= FLUX2_DOUBLE_BLOCKS else "FLUX.2 or Qwen-Image-2.1"
        return "Qwen-Image" if max(numbers) >= FLUX_DOUBLE_BLOCKS else None

    def _flux_generation(self) -> str | None:
        """Of a LoRA for names that both have, by the shapes of layers that widen, or by how many blocks there are."""
        shapes = [entry.shape for name, entry in self.entries.items() if FLUX_WIDENING.search(name)]
        ratios = {shape[0] / shape[1] for shape in shapes if shape and len(shape) == 2}
        if found := {FLUX_BY_RATIO[int(ratio)] for ratio in ratios if ratio in FLUX_BY_RATIO}:
            return found.pop() if len(found) == 1 else None
        numbers = [int(n) for key in self.checkpoint for n in re.findall(r"double_blocks[._](\d+)", key)]
        return "FLUX.1" if max(numbers, default=0) >= FLUX2_DOUBLE_BLOCKS else None

    @property
    def families(self) -> list[str]:
        """Those that it may be for, one by one; none where nothing is known."""
        return re.split(", | or ", self.family) if self.family else []

    @property
    def keys(self) -> list[str]:
        return list(self.checkpoint)

    def _any(self, sign: str) -> bool:
        return any(re.search(sign, key) for key in self.checkpoint)


def open_lora(source: str | Path, notify: Notify = notify_stderr) -> LoraFile:
    """`source`: a file, a folder that holds one, the name of one in the ComfyUI folder that is set,
    `owner/repository:file` or `owner/repository@revision:file`."""
    chosen = chosen_folder()
    if chosen and not expanded(source).exists():
        source = chosen.named(str(source), LORAS) or source
    path, published = _locate(str(source), notify)
    tensors, metadata = read_header(path)
    file = LoraFile.of(Checkpoint(tensors, [path], path), metadata, str(source), published)
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        check_finite(tensor)
    return file


def _group(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Tensors by module and part, and the keys that are neither."""
    groups: dict[str, dict[str, Tensor]] = {}
    unknown_keys = []
    for key, tensor in tensors.items():
        split = split_key(key)
        if split is None:
            unknown_keys.append(key)
            continue
        module, part = split
        parts = groups.setdefault(module, {})
        _check_part(part, tensor, parts.get(part))
        parts.setdefault(part, tensor)
    return groups, unknown_keys


def _check_part(part: str, tensor: Tensor, other: Tensor | None) -> None:
    """`other`: one that means the same. Some files hold every pair twice, as lora_A/lora_B and as lora_down/lora_up:
    one copy counts."""
    path, key = tensor.path, tensor.name
    if other and other.shape != tensor.shape:
        raise LoraError(f"{path}: '{key}' and '{other.name}' mean one tensor, in two shapes: a damaged file.")
    if other and ADAPTER.sub("", key) == ADAPTER.sub("", other.name):
        raise LoraError(
            f"{path} holds several adapters: '{key}' and '{other.name}' are for the same place. Save each into a file "
            "of its own, and give both files."
        )
    if part == "alpha" and math.prod(tensor.shape) != 1:
        raise LoraError(f"{path}: '{key}' should be one number and has the shape {list(tensor.shape)}: a damaged file.")
    if 0 in tensor.shape:
        raise LoraError(f"{path}: '{key}' has the shape {list(tensor.shape)}, so it changes nothing: a damaged file.")
    if part != "alpha" and not tensor.floating:
        raise LoraError(
            f"{path}: '{key}' holds whole numbers ({tensor.dtype}): a file that was quantized. Take its bf16 or fp16 "
            "version."
        )


def _locate(source: str, notify: Notify) -> tuple[Path, str | None]:
    """The file and, if it lies in a repository, its name with the commit."""
    path = expanded(source)
    if path.is_dir():
        return _only_file(path), None
    _refuse_pickle(path)
    if path.is_file():
        return path, None
    head, _, tail = source.rpartition(":")
    if expanded(head).is_file():
        raise LoraError(
            f"{source}: '{tail}' is no scale for {head}. On the command line it is --lora {head}:0.8, in Python "
            f"lora=[({head!r}, 0.8)]."
        )
    remote = REMOTE.fullmatch(source)
    if remote is None:
        raise MissingFileError(
            f"there is no LoRA file {source}. Give a .safetensors file, or a repository and its file as "
            "owner/name:file.safetensors."
        )
    return _fetch(remote["repo"], remote["revision"] or "main", remote["file"], notify)


def is_local(source: str) -> bool:
    """Whether a LoRA can be opened without a download; asks nobody."""
    remote = REMOTE.fullmatch(source)
    if remote is None or expanded(source).exists():
        return True
    folder = cached(cache_folder(), remote["repo"], remote["revision"] or "main")
    return folder is not None and (folder / remote["file"]).is_file()


def _fetch(repo: str, revision: str, file: str, notify: Notify) -> tuple[Path, str]:
    patterns = [glob.escape(file)]
    if Path(file).name.startswith(PEFT_FILE):  # its strength is in a file next to it
        patterns.append(glob.escape(Path(file).with_name(PEFT_CONFIG).as_posix()))
    folder = fetch_files(Download(f"the LoRA {file}", repo, revision, patterns, f"see {repo}"), notify)
    return folder / file, f"{repo}@{revision_of(folder) or revision}:{file}"


def _only_file(folder: Path) -> Path:
    files = visible(folder, "*.safetensors")
    if len(files) == 1:
        return files[0]
    if not files:
        for path in visible(folder, "*"):
            _refuse_pickle(path)
    names = listed([path.name for path in files]) if files else "none"
    raise LoraError(f"{folder} should hold one .safetensors file and holds {len(files)} ({names}); name the file.")


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise LoraError(
            f"{path} is a pickle, which can run any code when it is opened, so it is refused. Take the .safetensors "
            "file, or convert it if you trust its maker: python -c 'import sys, torch, safetensors.torch as st; "
            "st.save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])' "
            f"{shlex.join([str(path), str(path.with_suffix('.safetensors'))])}"
        )


def _configs(path: Path, metadata: Mapping[str, str]) -> dict[str, AdapterConfig]:
    """Configurations by the prefix of the modules they are for ("" for all)."""
    config_path = path.with_name(PEFT_CONFIG)
    tables: dict[str, dict[str, Any]] = {}
    try:
        flat = parse_json(metadata.get(ADAPTER_METADATA, "{}"), f"{path}: '{ADAPTER_METADATA}'", LoraError)
        if not flat and config_path.is_file():
            flat = read_json(config_path, LoraError)
        for key, value in flat.items():
            prefix, _, name = key.rpartition(".")
            tables.setdefault(prefix, {})[name] = value
        configs = {prefix: AdapterConfig.read(table) for prefix, table in tables.items() if "r" in table}
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError, re.error) as error:
        raise LoraError(
            f"{path}: the adapter's configuration cannot be read ({shown(str(error), 200)}), so its strength is "
            f"unknown. It is in the file's metadata '{ADAPTER_METADATA}' or in {config_path.name}; take both from the "
            "LoRA's repository."
        ) from error
    initializers = [table["init_lora_weights"] for table in tables.values() if "init_lora_weights" in table]
    if other := next(filter(OTHER_BASE.match, map(str, initializers)), None):
        raise LoraError(
            f"{path} was started with '{other}', which changes the base weights, and those are not in the file; "
            "merged into others it would damage them. Save it again as a plain LoRA: PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion does that."
        )
    return configs


def _configured(configs: Mapping[str, AdapterConfig], module: str) -> Callable[[int | None], float] | None:
    """The configuration for a module: of the longest prefix that it begins with."""
    fitting = [prefix for prefix in configs if not prefix or module.startswith(f"{prefix}.")]
    if not fitting:
        return None
    prefix = max(fitting, key=len)
    bare = module.removeprefix(f"{prefix}.").removeprefix("base_model.model.")
    return functools.partial(configs[prefix].scale, bare)


def _pattern(text: str) -> str:
    """A regular expression that is done soon with every name: no group repeats, and few characters do."""
    plain = re.sub(r"\\.|\[\]?[^]]*\]|\(\?[:=!]", "", text)
    if (
        len(text) > PATTERN_LENGTH
        or re.search(r"\)[*+{]", plain)
        or len(re.findall(r"[*+{?]", plain)) > PATTERN_REPEATS
    ):
        raise ValueError(f"the pattern {quoted(text)} is too long or repeats too much")
    re.compile(text)
    return text


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= int(value) <= LARGEST_RANK:
        raise ValueError(f"a rank of {quoted(value)}")
    return int(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_ALPHA:
        raise ValueError(f"an alpha of {quoted(value)}")
    return float(value)


def _of_pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """PEFT's rule: a pattern is the end of a module's name, at a dot."""
    ends = [module, *(module[dot.end() :] for dot in re.finditer(r"\.", module))]
    return next(
        (value for pattern, value in patterns.items() if any(re.fullmatch(pattern, end) for end in ends)), otherwise
    )
