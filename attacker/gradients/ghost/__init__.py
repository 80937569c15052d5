"""Products of gradients that are never formed: they follow from each layer's input and output gradient."""
