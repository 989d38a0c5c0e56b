"""Latent <-> tokens: hyper-encoder, vector quantiser, hyper-decoder."""
