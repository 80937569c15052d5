"""Gradient-inversion attacks and the audit built on them. Imports neither flwr nor ray."""
