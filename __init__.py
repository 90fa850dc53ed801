"""lutra: low-bit language models on ordinary CPUs."""
