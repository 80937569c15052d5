"""Gradient matching: images are optimised until their gradient points where the observed one does.

Composed of parts.
"""
