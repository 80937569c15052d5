"""A vision transformer of which only the head is trained and sent."""
