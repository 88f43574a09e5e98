"""A scanner's drop folder: `watcher` is the loop, `scan` looks, `journal` remembers, `page` shows."""
