"""Any model's blocks, its place among the reference models, and what that says about SGD."""

from blockspectra.diagnosis.diagnose import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
