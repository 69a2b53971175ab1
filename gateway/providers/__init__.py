"""The providers, one line each."""
