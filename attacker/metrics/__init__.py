"""Similarity of images, success rates, and intervals of shares."""
