"""The plan of an audit: which attacks run, what they cost, and what would let the others run."""
