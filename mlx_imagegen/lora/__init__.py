"""LoRA: what a file holds (file, names), which weights it means (match), how it changes them (deltas), the merge while
weights stream in (merge), and the merge into weights that are packed already (source)."""
