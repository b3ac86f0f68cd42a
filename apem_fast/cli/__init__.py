"""The command `apem-fast`: everything that Typer reads. No other folder imports from this one."""
