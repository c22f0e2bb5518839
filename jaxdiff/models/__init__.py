"""Reference networks in Flax Linen; they know nothing of diffusion."""
