"""The compiler: from a checkpoint folder to a bundle that decodes text on its own."""
