"""Measurements: programs to run, `python benchmarks/NAME.py`. A package, since others install one of this name."""
