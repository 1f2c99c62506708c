"""Formulas of lensing and of surface brightness."""
