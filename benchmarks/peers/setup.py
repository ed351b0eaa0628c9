"""Makes .venv-mflux and .venv-diffusers next to this file. Nothing outside this folder imports from them."""

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
MFLUX = "mflux==0.24.0"
# What mflux's transformers import. Its own requirements would bring PyTorch and, on Linux, MLX for CUDA.
MFLUX_NEEDS = [
    "mlx==0.32.4" if sys.platform == "darwin" else "mlx[cpu]==0.32.4",
    *"numpy pillow tqdm safetensors requests huggingface-hub<2 transformers>=5.5,<6 sentencepiece platformdirs".split(),
    *"piexif toml regex pyyaml opencv-python-headless fonttools matplotlib".split(),
]
# torch by itself first: a plain request takes the build that this machine's package sources offer.
DIFFUSERS = [["torch==2.13.0"], ["diffusers==0.42.*", "transformers>=5.14", "accelerate", "sentencepiece", "protobuf"]]


def main() -> None:
    mflux = _environment("mflux")
    _install(mflux, ["--no-deps", MFLUX])
    _install(mflux, MFLUX_NEEDS)
    diffusers = _environment("diffusers")
    for packages in DIFFUSERS:
        _install(diffusers, packages)


def python_of(name: str) -> Path:
    return HERE / f".venv-{name}" / "bin" / "python"


def _environment(name: str) -> Path:
    python = python_of(name)
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
    return python


def _install(python: Path, packages: list[str]) -> None:
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)


if __name__ == "__main__":
    main()
