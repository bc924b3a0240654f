"""Job packages for Slurm, and what their scripts ask Python for. No torch: login nodes run it too."""
