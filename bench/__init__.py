"""Speed, accuracy drop, gates and reports.

Start at `cli`: one file a verb in `commands`. `interval` is the statistic that all rooms rest on.
"""
