"""Dataset cards, decoding, clip sampling and the one train and one test pipeline of each card."""
