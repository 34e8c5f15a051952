"""Memory: what followed each context so far, mixed with the model's predictions; see docs/memory.md."""
