"""The watcher as a service of the machine: what systemd and Windows are given to start it and keep it up."""
