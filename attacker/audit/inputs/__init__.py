"""What is audited: a tape with its model, what its updates show by themselves, and which truth belongs to it."""
