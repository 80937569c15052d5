"""Reconstructions joined with the truth: similarity, placebos, leakage indices. Attacks never come here."""
