"""`python -m trainwell`."""

from trainwell.cli import main

if __name__ == "__main__":
    main()
