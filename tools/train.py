"""Train a model, distilled or plain. The same as `mmkd train`; --help tells the options."""

import sys

from _start import load

main = load('train')

if __name__ == '__main__':
    sys.exit(main())
