"""What `watcher_hour.py` is made of: the watched folders, what is done to them, and the judgement."""
