"""Untrusted image files -> pixels -> counts."""
