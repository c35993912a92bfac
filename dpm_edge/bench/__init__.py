"""`dpm-edge bench`: how long answers take and how many a machine gives, engine only and end to end."""
