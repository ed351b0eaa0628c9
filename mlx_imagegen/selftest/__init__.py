"""Checks whether this machine's kernels are correct: each operation that the library uses, by MLX on the default device
against NumPy; requests from several threads; the demo models' pictures."""
