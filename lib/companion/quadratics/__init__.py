"""Quadratics with prescribed block spectra, optimizers on them, and the bounds of the theory."""
