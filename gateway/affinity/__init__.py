"""Which decoder is asked about a picture: the one that has read its embedding already, while it has room."""
