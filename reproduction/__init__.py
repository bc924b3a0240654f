"""The paper's tables from runs: which are to be trained, their training, what came out."""
