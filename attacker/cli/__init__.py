"""The command line ``fl-precode``."""
