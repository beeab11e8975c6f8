"""``python -m meshmsg`` is ``meshmsg``."""

from meshmsg.cli.main import main

if __name__ == "__main__":
    main()
