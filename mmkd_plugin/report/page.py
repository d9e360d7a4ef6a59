"""The frame of a report: style and skeleton; build.py fills it."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title><!--TITLE--></title>
<style>
:root { --ink: #0f172a; --soft: #475569; --line: #e2e8f0; --blue: #2563eb; --page: #f1f5f9;
        --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f1f5f9; --soft: #a8b3c4; --line: #334155; --blue: #60a5fa; --page: #0b1120;
          --card: #172033; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
       font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.25rem; }
h1 { font-size: 1.6rem; margin: 1rem 0 .25rem; }
h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
h3 { font-size: .9rem; margin: .9rem 0 .35rem; font-weight: 600; overflow-wrap: anywhere; }
p { margin: .4rem 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
          padding: 1.1rem; margin: 1rem 0; }
.verdict { border-left: 5px solid var(--blue); font-size: 1.08rem; }
.note, figcaption { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 600; font-size: .85rem; }
tbody tr:last-child > * { border-bottom: 0; }
.runs td:last-child { text-align: left; white-space: normal; min-width: 20rem;
                      font: .75rem ui-monospace, monospace; overflow-wrap: anywhere; }
.runs thead th:last-child { text-align: left; }
img { width: 100%; height: auto; display: block; }
.trio { display: grid; grid-template-columns: repeat(3, 1fr); gap: .6rem; margin-bottom: 1rem; }
.trio .legend { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: .2rem .9rem;
                font-size: .8rem; color: var(--soft); }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
            margin-right: .35em; }
figure { margin: 0; }
svg { width: 100%; height: auto; display: block; border-radius: 8px; }
.mark .box { fill: transparent; stroke-width: var(--stroke); }
.mark .chip { fill: #000; fill-opacity: .72; }
.mark text { font-family: system-ui, sans-serif; font-weight: 600; }
.mark:hover .box { stroke-width: calc(2.2 * var(--stroke)); fill: #fff; fill-opacity: .18; }
.truth .box { stroke: #fff; } .truth text { fill: #fff; }
.right .box { stroke: #4ade80; } .right text { fill: #4ade80; }
.wrong .box { stroke: #f87171; } .wrong text { fill: #fda4a4; }
.missed .box { stroke: #fde047; stroke-dasharray: calc(3 * var(--stroke)); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0;
     align-content: start; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.trio dl { grid-column: 2 / -1; font-size: .9rem; }
@media (max-width: 40rem) {
  main { padding: .6rem; } section { padding: .8rem; }
  .trio { gap: .3rem; } figcaption { font-size: .7rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
}
</style>
</head>
<body>
<main>
<h1><!--TITLE--></h1>
<p class="note"><!--INTRO--></p>
<!--SECTIONS-->
</main>
</body>
</html>
"""
