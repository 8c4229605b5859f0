"""Who may do what on what: pure values and decisions. Who somebody is, is found out elsewhere (`api/gate.py`)."""
