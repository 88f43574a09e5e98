"""Where tissue is: `find` draws the mask, `ink` tells pen from stain."""
