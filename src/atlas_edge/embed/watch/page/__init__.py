"""What a watcher says of itself by HTTP: pages for people, figures for whoever looks after the machine."""
