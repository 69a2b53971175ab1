"""The dialects that clients speak, one line each."""
