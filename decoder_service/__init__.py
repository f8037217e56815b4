"""The decoder service: predicts masks on the CPU from image embeddings and prompts."""
