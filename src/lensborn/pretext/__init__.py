"""The pretext tasks: everything that trains the encoder. The only room that imports torch (Zou et al., 2025)."""
