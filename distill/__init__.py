"""Teacher to student.

Start at `cli`; `training.run` goes from a configuration to a student's folder.
"""
