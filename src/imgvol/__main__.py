"""`python -m imgvol` is the `imgvol` command."""

from imgvol.cli.main import main

if __name__ == "__main__":
    main()
