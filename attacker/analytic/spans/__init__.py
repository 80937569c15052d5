"""Inputs of two stacked Linear layers, told apart by the row spaces of both weight gradients."""
