"""Measured runs compared on one page."""
