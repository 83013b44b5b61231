"""The program `randwire-zoo`, which is `python -m randwire_zoo`."""
import sys

from .interrupts import EXIT, exit_on_interrupt, ignore_interrupts


def main() -> int:
    """Run the command line, and end on Ctrl-C with one line whenever it comes."""
    exit_on_interrupt()
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        return EXIT
    finally:
        ignore_interrupts()


if __name__ == '__main__':
    sys.exit(main())
