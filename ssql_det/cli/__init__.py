"""Floor 4: ``ssql-det <command>``. One file a command; torch is imported only when a command runs."""
