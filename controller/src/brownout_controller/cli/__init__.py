"""The `brownout` command. Results on stdout, progress and errors on stderr; one file per group of commands."""
