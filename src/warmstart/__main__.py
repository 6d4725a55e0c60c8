"""`python -m warmstart` is `warmstart`."""

from warmstart.cli.main import main

if __name__ == "__main__":
    main()
