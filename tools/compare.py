"""Compare finished runs. The same as `mmkd compare`; --help tells the options."""

import sys

from _start import load

main = load('compare')

if __name__ == '__main__':
    sys.exit(main())
