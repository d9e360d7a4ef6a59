"""The frame of the demo's report; report.py puts its parts in place of the comments."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Distillation on handwritten digits</title>
<style>
:root { --ink: #0f172a; --soft: #475569; --line: #e2e8f0; --blue: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; background: #f1f5f9; color: var(--ink); line-height: 1.5;
       font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.25rem; }
h1 { font-size: 1.6rem; margin: 1rem 0 .25rem; }
h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
p { margin: .4rem 0; }
section { background: #fff; border: 1px solid var(--line); border-radius: 14px;
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
figure { margin: 0; }
svg { width: 100%; height: auto; display: block; border-radius: 8px; }
svg rect { fill: none; stroke-width: 1.1; }
svg text { font: 700 7px system-ui, sans-serif; paint-order: stroke; stroke: #000;
           stroke-width: 1.4px; }
rect.truth { stroke: #fff; } text.truth { fill: #fff; }
rect.right { stroke: #4ade80; } text.right { fill: #4ade80; }
rect.wrong { stroke: #f87171; } text.wrong { fill: #fda4a4; }
rect.missed { stroke: #fde047; stroke-dasharray: 3 2; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  main { padding: .6rem; } section { padding: .8rem; }
  .trio { gap: .3rem; } figcaption { font-size: .7rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
}
</style>
</head>
<body>
<main>
<h1>What did distillation change?</h1>
<p class="note">GFL detectors trained from scratch on handwritten digits, a synthetic scene around
real scans. The numbers are of this run on this machine.</p>
<section class="verdict"><!--VERDICT--></section>
<section><h2>Results</h2><div class="wide"><!--TABLE--></div>
<p class="note"><!--NOTE--></p></section>
<section><h2>Training curves</h2><!--AP--><!--LOSSES--></section>
<section><h2>Classes</h2><!--CLASSES--></section>
<section><h2>Detections</h2>
<p class="note">The first images of the validation set, in their order; seed 0; detections with a
score above 0.3. Green: right class and an IoU of at least 0.5. Red: wrong. Dashed yellow: a digit
that was missed.</p>
<!--GALLERY--></section>
<section><h2>How it was made</h2><!--FACTS--></section>
<section><h2>Runs</h2><div class="wide runs"><!--RUNS--></div></section>
</main>
</body>
</html>
"""
