"""A bundle for other people's programs: `graph` feeds what they feed, `layouts` are the folders of their servers."""
