"""`python -m mlx_imagegen` is `mlx-imagegen`."""

from .cli import entry

entry()
