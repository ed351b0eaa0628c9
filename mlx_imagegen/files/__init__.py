"""What lies on the disk: manifests, recipes, the hub's downloads, configs, tensors, and how they get into modules."""
