"""PerCoV2: an image codec for 0.002-0.03 bits per pixel on the Stable Diffusion 3 family."""
