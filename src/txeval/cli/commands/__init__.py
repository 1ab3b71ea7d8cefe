"""One module per command: each holds a `COMMAND` and is found by itself."""
