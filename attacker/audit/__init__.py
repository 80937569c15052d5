"""Audit: attacks on a tape, joined with the truth where it is known, as one versioned record."""
