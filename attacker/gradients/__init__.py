"""What clients compute and send, for many candidates at once: gradients, and their products with the observed ones."""
