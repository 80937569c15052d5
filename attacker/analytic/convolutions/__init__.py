"""Maps that entered a model's convolutions, from the row spaces of their gradients and from the layers behind."""
