"""The recipe of the carried base `gpt2-mini`: its corpus by digest, its training, its losses, its card."""
