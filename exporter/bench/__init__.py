"""`dqexport bench`: how fast a bundle is on this machine, in all that can run it here."""
