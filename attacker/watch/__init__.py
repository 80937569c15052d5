"""Watch: what a curious server sees, shown round by round on a local page while the federation runs."""
