"""Networks, what they take in, and what a trained one is on disk."""
