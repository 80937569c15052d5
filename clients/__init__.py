"""The reference ClientApp."""
