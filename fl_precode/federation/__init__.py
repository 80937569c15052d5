"""The reference federation: its settings, data, model, and the clients' local work."""
