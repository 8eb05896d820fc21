"""The AdaFocus family as recognizers of the contract."""
