"""``python -m segx``."""

from segx.cli import main

if __name__ == "__main__":
    main()
