"""Uses of a trained model: perplexity, text, routing, compute sweeps, router scores, downstream tasks."""
