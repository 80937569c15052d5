"""A Flower app whose server listens at the grid."""
