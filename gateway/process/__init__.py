"""The processes of a gateway: one that supervises, and those that work, which are started by it and talk with it."""
