"""The demo: a staging network of namespaces on this machine, an experiment in it, and no trace afterwards."""
