"""Defaults that a command line shows before anything heavy is imported."""

# A 15 x 15 mm area took 156 s on a NanoZoomer S360 and 183-210 s on a Pannoramic 1000 (Genis 2021): the fastest is
# the default, so that "keeps up" holds for the others too.
SCANNER_SECONDS = 156.0
SLIDE_MM2 = 225.0
MPP = 0.5
