"""Influence beside measured errors: Zhang, Hong, Zhou (I2F, NeurIPS 2023), re-run."""
