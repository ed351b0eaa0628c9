"""Several ranks, one on each Mac, that draw together: imported only where MLX's launcher has started them."""
