"""What a student is worth: `evaluate` one against its teacher, `compare` one recipe with another."""
