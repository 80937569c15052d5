"""Runs the reference app on Flower's simulation runtime. It needs a checkout."""
