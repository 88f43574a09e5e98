"""What tools share; the commands are one folder up."""
