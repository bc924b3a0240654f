"""`python -m optim.export` is an alias of `python export.py`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("export", run_name="__main__", alter_sys=True)
