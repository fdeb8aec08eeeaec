"""Spectra as figures, in one style."""
