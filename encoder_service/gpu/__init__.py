"""The image encoder on a GPU: Triton kernels, products by cuBLAS, one CUDA graph for each batch size."""
