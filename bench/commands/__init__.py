"""The verbs of `atlas-bench`, one file each: arguments in, a report out; no figure is made here."""
