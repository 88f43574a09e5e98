"""What the student is asked for: teacher features made even (`phis`), the heads that map to them, the losses."""
