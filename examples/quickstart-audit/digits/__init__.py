"""Handwritten digits, learnt by many clients with a few images each."""
