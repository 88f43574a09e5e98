"""How each form of slide is read: OpenSlide, tifffile for what it cannot, and checks before a library trusts a file."""
