"""Does a bundle compute here what it computed where it was made?"""
