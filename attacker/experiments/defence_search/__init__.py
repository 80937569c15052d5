"""The search for the cheapest defence that holds."""
