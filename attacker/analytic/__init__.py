"""Inversion by equations: what each layer's gradient says about its input, from the classifier down to the image."""
