"""Trained networks at work: images -> predictions -> tables and maps."""
