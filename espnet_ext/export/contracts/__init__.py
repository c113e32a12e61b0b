"""How the graphs of each kind of model are made, and compared with torch."""
