"""What `--device` means to a runtime: one file each, from the name that a user gives to how a model is opened there."""
