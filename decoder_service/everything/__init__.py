"""Everything in a picture: a grid of points, and of the masks that they find the good ones, each once."""
