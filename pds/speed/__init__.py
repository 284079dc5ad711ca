"""How fast this machine samples, and what it could do at best."""
