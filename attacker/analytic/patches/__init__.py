"""Images from the first layers of vision transformers: patches, and the gradients of their positions."""
