"""Observation of simulated light: point-spread function, noise, and what detectors and satellites leave."""
