"""The fastest precision plan that passes the gate.

`search` drives, `candidates` proposes, `bench` measures on the target, `journal` remembers.
"""
