"""How fast this code is: `python -m bench --help`. Results lie in bench/results/, as JSON."""
