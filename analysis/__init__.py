"""Inside a trained model: KV compression, logit lens, router statistics, attention maps."""
