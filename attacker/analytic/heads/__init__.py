"""Heads behind a trunk: which layer a client trained there, and what entered it for each image."""
