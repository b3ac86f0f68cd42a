"""The command `apem-fast`: everything that Typer sees. Nothing imports this room."""
