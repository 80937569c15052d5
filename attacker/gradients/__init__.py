"""Gradients and updates of clients, for many candidates at once, and their products with the observed ones."""
