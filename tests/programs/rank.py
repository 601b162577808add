"""Runs a program as a rank that ends as `python -m distrec` ends one: at once, with C++ left as it is.

rank.py PROGRAM WORDS...
"""

import os
import runpy
import sys

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread of a process group that frees a tensor while the interpreter goes down would abort it
