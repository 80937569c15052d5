"""Measurements; opacus brings a package of the same name, which must not be found first."""
