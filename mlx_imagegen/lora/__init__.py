"""LoRA: what a file holds (file, names, adapter_config), whose it is (origins), which weights it means (match), how it
changes them (deltas), the merge while weights stream in (merge), and into weights that are packed already (source)."""
