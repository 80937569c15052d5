"""Attacks as jobs: what is attacked together, on which device, and what is kept of it."""
