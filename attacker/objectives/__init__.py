"""What a search minimises: distances between gradients, and priors on images, labels and features."""
