"""The image encoder in compiled code."""
