"""The reference ServerApp."""
