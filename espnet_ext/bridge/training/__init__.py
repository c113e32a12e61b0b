"""ESPnet's trainer: safe to kill, in one process or several, recorded."""
