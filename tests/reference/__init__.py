"""Formulas written out as loops, in plain Python, sharing no code with the package."""
