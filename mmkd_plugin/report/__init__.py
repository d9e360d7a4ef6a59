"""The report of a comparison: numbers in words, charts, pictures, the page. The demo has one."""
