"""Several ranks, one on each Mac, draw together. Imported only in processes that MLX's launcher started."""
