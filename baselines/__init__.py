"""The methods AdaFocus is compared with, one file each."""
