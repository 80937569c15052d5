"""Frozen sets of attacks, reported by number, and scores of reconstructions that others made of the same tapes."""
