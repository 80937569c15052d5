"""A NumPyClient app with a strategy of flwr.server, as Flower's tutorials had it."""
