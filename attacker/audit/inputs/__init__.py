"""Inputs of an audit: a tape with its model, findings about its updates, and the truth that belongs to it."""
