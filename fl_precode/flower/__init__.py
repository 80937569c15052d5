"""What touches Flower: strategy wrappers, the FedSGD strategy and the launcher. The only part that imports flwr."""
