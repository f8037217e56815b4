"""The command line, and all three services in one process."""
