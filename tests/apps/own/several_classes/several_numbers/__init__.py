"""An app whose images have several classes or none, as Flower's quickstart shapes it."""
