"""What mflux calls the tensors of its saved models, next to diffusers' names: mflux's own tables, as patterns.

    python tests/references/mflux_names.py FILE

Needs mflux.
"""

import argparse
import json
from pathlib import Path

from mflux.models.flux.weights.flux_weight_mapping import FluxWeightMapping as Flux
from mflux.models.qwen.weights.qwen_weight_mapping import QwenWeightMapping as Qwen

TABLES = {
    "flux1/transformer": Flux.get_transformer_mapping,
    "flux1/vae": Flux.get_vae_mapping,
    "flux1/text_encoder_2": Flux.get_t5_encoder_mapping,
    "flux1/text_encoder": Flux.get_clip_encoder_mapping,
    "qwen_image/transformer": Qwen.get_transformer_mapping,
    "qwen_image/text_encoder": Qwen.get_text_encoder_mapping,
    "qwen_image/vae": Qwen.get_vae_mapping,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    names = {
        table: {target.to_pattern: target.from_pattern[0] for target in mapping() if target.from_pattern}
        for table, mapping in TABLES.items()
    }
    parser.parse_args().file.write_text(json.dumps(names, indent=0) + "\n")


if __name__ == "__main__":
    main()
