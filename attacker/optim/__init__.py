"""Optimisers for many candidates at once, each with a step, a history and an end of its own.

They know no gradients of models.
"""
