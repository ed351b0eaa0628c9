"""Whether this machine's kernels compute what they should: each operation that the library uses, by MLX on the default
device and by NumPy; requests from several threads; the demo models' pictures."""
