"""Every error a user can cause or meet, as one tree.

    ImagegenError
    ├── RequestError          (ValueError)          a parameter, a flag, a prompt or a picture is wrong
    ├── UnknownModelError     (ValueError)          no manifest, repository or folder of that name
    ├── ConfigError           (ValueError)          a config.json is missing a field or names another architecture
    ├── CheckpointError       (ValueError)          a tensor file is truncated, corrupt, incomplete or does not fit
    │   └── MismatchError                           missing, unexpected and misshapen tensors, gathered
    ├── LoraError             (ValueError)          a LoRA does not match, or cannot be merged
    ├── QuantizationError     (ValueError)          a recipe, bit width or output that cannot be used
    ├── MissingFileError      (FileNotFoundError)   a file or folder that should be there is not
    ├── DownloadError         (OSError)             gated, offline, no room, or an incomplete download
    ├── OutputError           (OSError)             a picture or folder cannot be written
    └── InsufficientMemoryError (MemoryError)        the run cannot fit in this machine

A message is one paragraph: what happened, why, and how to fix it. The CLI prints it on one line and exits 2.
"""


class ImagegenError(Exception):
    """Root of the tree: `except ImagegenError` catches everything this library raises on purpose."""


class RequestError(ImagegenError, ValueError):
    pass


class UnknownModelError(ImagegenError, ValueError):
    pass


class ConfigError(ImagegenError, ValueError):
    pass


class CheckpointError(ImagegenError, ValueError):
    pass


class MismatchError(CheckpointError):
    pass


class LoraError(ImagegenError, ValueError):
    pass


class QuantizationError(ImagegenError, ValueError):
    pass


class MissingFileError(ImagegenError, FileNotFoundError):
    pass


class DownloadError(ImagegenError, OSError):
    pass


class OutputError(ImagegenError, OSError):
    pass


class InsufficientMemoryError(ImagegenError, MemoryError):
    pass
