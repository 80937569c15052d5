"""Random numbers: where noise comes from, and seeds that leave torch's generators as they were."""
