"""LoRA files: located, opened, their tensors grouped by module.

In: a path, or a repository and file. Out: a `LoraFile`. Data is read once to refuse NaN; all else is in the header.
Must not know: the model that is open, arithmetic.
"""

import glob
import hashlib
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import LoraError, MissingFileError
from ..escaping import listed
from ..hub.comfy import LORAS, chosen_folder
from ..hub.download import REPOSITORY, Download, Notify, fetch_files, notify_stderr
from ..hub.record import revision_of
from ..hub.snapshots import cache_folder, cached
from ..loading.checkpoint import Checkpoint, Tensor, read_header
from ..paths import expanded, visible
from .adapter_config import PEFT_CONFIG, configured_scale, read_adapter_configs
from .deltas import Entry, check_finite
from .names import ADAPTER, split_key
from .origins import model_of, trainer_of

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# owner/name:file, or owner/name@revision:file
REMOTE = re.compile(rf"(?P<repo>{REPOSITORY.pattern})(@(?P<revision>[^:@]+))?:(?P<file>.+)")
PEFT_FILE = "adapter_model."  # PEFT's own name for a file, whose configuration is next to it


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
        configs = read_adapter_configs(path, metadata)
        entries = {name: Entry(name, parts, configured_scale(configs, name)) for name, parts in groups.items()}
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
        """By the program that wrote it."""
        return trainer_of(self.checkpoint)

    @property
    def family(self) -> str | None:
        """The model whose modules the keys name, as far as the file says."""
        return model_of(self.checkpoint, self.entries, self.metadata)

    @property
    def families(self) -> list[str]:
        """Those that it may be for, one by one; none where nothing is known."""
        return re.split(", | or ", self.family) if self.family else []


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
