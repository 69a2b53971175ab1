"""The middlewares that ship with Millrace, one file each, one signature for all."""
