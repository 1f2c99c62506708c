"""Data sets: made, stored, opened and split."""
