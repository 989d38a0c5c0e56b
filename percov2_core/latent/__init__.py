"""Image <-> latent."""
