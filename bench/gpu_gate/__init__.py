"""The GPU gate: what must be checked and measured where there is a GPU, in less than nine minutes."""
