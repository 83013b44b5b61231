"""`python -m randwire_zoo` is `randwire-zoo`."""
import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
