"""Test a checkpoint. The same as `mmkd test`; --help tells the options."""

import sys

from _start import load

main = load('test')

if __name__ == '__main__':
    sys.exit(main())
