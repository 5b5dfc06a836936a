"""Who runs what, when."""

from flows import environment

environment.prepare()  # Prefect reads its settings when it is imported: whoever imports it imports this first
