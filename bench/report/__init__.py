"""What a run measured, as a file and for the eye.

`schema` is `report.json`; `rows` and `speed_rows` its figures as text, which the terminal, Markdown and HTML show.
"""
