"""Finds a part of the command ``mmkd`` for the scripts beside this one."""

try:
    from mmkd_plugin.cli.command import load
except ImportError as error:
    missing = error.name == 'mmkd_plugin'
    how = ' (in its checkout: pip install -e .)' if missing else ''
    raise SystemExit(f'error: {error}{how}') from None

__all__ = ['load']
