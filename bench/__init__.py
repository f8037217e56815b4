"""Benchmarks: scripts that print the tables that README shows."""
