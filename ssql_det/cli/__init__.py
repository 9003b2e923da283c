"""``ssql-det <command>``, one file per command. torch is imported only when a command runs."""
