"""What is done with a trained model that routes: thresholds, router scores, perplexity over compute."""
