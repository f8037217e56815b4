"""The fused engine: the image's side of SAM's mask decoder as compiled code, for CPUs that multiply bfloat16."""
