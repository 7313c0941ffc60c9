"""`dqexport tune`: the fastest decoding settings whose accuracy stays within a budget."""
