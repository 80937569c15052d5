"""How the documentation site is made; no part of the package."""
