"""Full precision, q8, q6 and q4 of a built-in demo model by `mlx-imagegen bench`, which gets all further arguments."""

import sys
import tempfile

from mlx_imagegen.cli import main as cli


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(cli(["bench", "--model", "hidream-demo", "-o", folder, *sys.argv[1:]]))


if __name__ == "__main__":
    main()
