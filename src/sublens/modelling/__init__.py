"""Fits of lens models to single images: the smooth lens, the source behind it and the galaxy's own light."""
