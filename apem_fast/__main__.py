"""`python -m apem_fast` is the command `apem-fast`."""

from apem_fast.cli.main import main

if __name__ == "__main__":
    main()
