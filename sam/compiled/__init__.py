"""Compiled code: what the services have in C++, how it is built, and how it is loaded."""
