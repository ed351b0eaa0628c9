"""Quantization: which layer gets what (recipes), the rounding itself (packing, calibrate), and the streaming conversion
of a checkpoint (layout, convert, partial, quantizer)."""
