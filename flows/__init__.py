"""Who runs what, when."""

from flows import environment, interrupts

environment.prepare()  # Prefect reads its settings when it is imported: whoever imports it imports this first
if interrupts.is_command():
    interrupts.install()  # before all else is imported, which takes seconds
    environment.quieten()
