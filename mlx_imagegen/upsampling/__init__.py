"""Prompt upsampling: a short request, with pictures and boxes or without, becomes a model's own long caption."""
