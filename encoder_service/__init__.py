"""The service that turns pictures into image embeddings and stores them."""
