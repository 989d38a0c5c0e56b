"""Tokens and caption -> latent: text encoder, flow transformer, sampler."""
