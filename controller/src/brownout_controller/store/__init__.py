"""What outlives the controller's process: runs, hosts that enrolled, tokens, the owner epoch."""
