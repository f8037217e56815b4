"""Segmenting everything over HTTP: one answer, or a line for each step of the way."""
