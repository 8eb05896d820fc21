"""Building blocks that several methods share (a method never imports another method)."""
