"""Job packages for Slurm and their Python helpers. No torch: login nodes run them too."""
