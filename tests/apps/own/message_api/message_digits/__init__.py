"""A message-API app in PyTorch, as Flower's quickstart shapes it."""
