"""The file downstream tools read: `files` writes it, `attributes` says what it is, `lock` keeps off other writers."""
