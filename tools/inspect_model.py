"""List the places of a model that can be tapped. The same as `mmkd inspect`; see --help."""

import sys

from _start import load

main = load('inspect_model')

if __name__ == '__main__':
    sys.exit(main())
