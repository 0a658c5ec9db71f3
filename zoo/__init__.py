"""A zoo of time-mixing layers for language models, built around torch.compile."""
