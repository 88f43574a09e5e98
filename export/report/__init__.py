"""What an export says of itself: the table of figures, and the bundle's model card."""
