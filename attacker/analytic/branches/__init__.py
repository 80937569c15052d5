"""Low-rank branches beside frozen layers (LoRA): where they are, and the gradient that the frozen layer would have."""
