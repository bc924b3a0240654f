"""Measuring a model: perplexity, accuracy, text samples."""
