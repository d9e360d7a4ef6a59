"""Say before training what is wrong with a pair. The same as `mmkd doctor`; see --help."""

import sys

from _start import load

main = load('doctor')

if __name__ == '__main__':
    sys.exit(main())
