"""What differential privacy is worth here: what a release guarantees, and what an audit measures of it."""
