"""Commands that need a checkout of the repository; the wheel leaves them out."""
