"""Objectives of searches: distances between gradients, and priors on images, labels and features."""
