"""Looking into a trained model: its keys and values, what it would say at each depth, who goes deep."""
