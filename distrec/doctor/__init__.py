"""`distrec doctor`: what this machine and this environment lack, each with the command that mends it.

Nothing here imports torch, FBGEMM or any other package that can fail: each is tried in a process of its own.
"""
