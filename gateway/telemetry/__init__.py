"""What can be seen from outside: metrics, traces and the table of live streams. The streams know nothing of it."""
