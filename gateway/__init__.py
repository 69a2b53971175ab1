"""Millrace: a streaming LLM gateway.

A stream that has begun is finished, or its end is told truthfully; and whatever happened to it can be seen.
"""

__version__ = "0.1.0"
