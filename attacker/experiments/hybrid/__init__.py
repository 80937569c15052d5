"""Analytic inversion beside searches: Chen and Campbell's comparison (arXiv 2111.10178) and R-GAP's, re-run."""
