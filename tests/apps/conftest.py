"""The own apps are run by Flower, with the environment that they need; pytest must not import them for doctests."""

collect_ignore_glob = ["own/*"]
