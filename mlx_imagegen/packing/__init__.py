"""Weights -> codes, scales and biases, in numpy, the same bits on every machine."""
