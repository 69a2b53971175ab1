"""The sans-I/O core: what a token stream is, without a socket, a clock, a log or an event loop."""
