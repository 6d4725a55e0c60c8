"""The page around the parts: one file, no script, nothing fetched, a policy that forbids both."""

from __future__ import annotations

import base64
import hashlib
from string import Template

from warmstart.report.markup import esc

STYLE = """
:root { color-scheme: light dark; --bg:#fbfbfa; --card:#fff; --ink:#1b1d21; --soft:#5f6672; --rule:#e3e4e8;
  --main:#2459c9; --second:#b4500b; --hit:36 89 201; --miss:180 80 11; }
@media (prefers-color-scheme: dark) { :root { --bg:#14161a; --card:#1c1f25; --ink:#e8e9ec; --soft:#9aa2af;
  --rule:#30343c; --main:#86a9ff; --second:#f5a562; --hit:110 150 255; --miss:245 150 80; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--ink); font:16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
  -webkit-text-size-adjust:100%; }
main { max-width:62rem; margin:0 auto; padding:2rem 1.25rem 4rem; }
h1 { font-size:1.7rem; line-height:1.2; margin:0 0 .25rem; overflow-wrap:anywhere; text-wrap:balance; }
h2 { font-size:1.15rem; margin:0 0 .4rem; }
section { margin-top:2.5rem; }
.lead, .notes { color:var(--soft); margin:0 0 .9rem; max-width:46rem; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(min(100%, 9rem), 1fr)); gap:.75rem;
  margin-top:1.5rem; }
.tile { background:var(--card); border:1px solid var(--rule); border-radius:12px; padding:.8rem 1rem; }
.tile span, .tile small { display:block; color:var(--soft); font-size:.82rem; overflow-wrap:anywhere; }
.tile b { display:block; font-size:1.5rem; line-height:1.3; font-variant-numeric:tabular-nums; }
.tile.big b { font-size:2.3rem; color:var(--main); line-height:1.15; }
.grid2 { display:grid; grid-template-columns:repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap:1rem; }
figure { margin:0; background:var(--card); border:1px solid var(--rule); border-radius:12px;
  padding:.8rem .9rem .5rem; }
figcaption { font-weight:600; font-size:.95rem; display:flex; flex-wrap:wrap; gap:.15rem 1rem; margin-bottom:.35rem; }
.legend { display:flex; flex-wrap:wrap; gap:.1rem .9rem; font-weight:400; font-size:.8rem; color:var(--soft); }
.key::before { content:""; display:inline-block; width:1em; height:3px; border-radius:2px; margin-right:.4em;
  vertical-align:.25em; background:var(--main); }
.key.raw::before { opacity:.35; } .key.second::before { background:var(--second); }
.key.area::before { background:var(--second); opacity:.25; height:9px; vertical-align:0; }
svg.chart { display:block; width:100%; height:auto; }
svg text { font:11.5px system-ui, sans-serif; fill:var(--soft); font-variant-numeric:tabular-nums; }
.grid { stroke:var(--rule); fill:none; } .line { fill:none; stroke:var(--main); stroke-width:2; stroke-linejoin:round; }
.line.raw { stroke-width:1; opacity:.35; } .line.second { stroke:var(--second); }
.dot { fill:var(--main); } .dot.second { fill:var(--second); } .dot.faint { opacity:.35; }
.band { fill:var(--second); opacity:.18; } .track { fill:var(--rule); } .range { fill:var(--main); opacity:.4; }
.mark { fill:var(--main); } svg.bar { vertical-align:middle; }
.scroll { overflow-x:auto; background:var(--card); border:1px solid var(--rule); border-radius:12px; }
table { border-collapse:collapse; width:100%; font-size:.92rem; }
th, td { text-align:left; padding:.45rem .8rem; border-top:1px solid var(--rule); vertical-align:top; }
thead th { border-top:0; color:var(--soft); font-weight:500; font-size:.82rem; white-space:nowrap; }
.n { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
.rows { list-style:none; margin:0; padding:0; background:var(--card);
  border:1px solid var(--rule); border-radius:12px; }
.rows li { padding:.7rem .9rem; border-top:1px solid var(--rule); overflow-wrap:anywhere; }
.rows li:first-child { border-top:0; } .rows p { margin:0 0 .2rem; }
.rows div { color:var(--soft); font-size:.85rem; display:flex; flex-wrap:wrap; gap:.1rem 1rem; }
.rows b { color:var(--ink); font-weight:600; }
small { color:var(--soft); } code { font-size:.88em; overflow-wrap:anywhere; }
.scroll:has(.matrix) { width:fit-content; max-width:100%; } .matrix { width:auto; }
.matrix td { text-align:center; min-width:3.2rem; font-variant-numeric:tabular-nums; }
.matrix th { font-weight:500; font-size:.85rem; color:var(--ink); white-space:nowrap; }
.matrix thead td { border:0; } .matrix tbody th { position:sticky; left:0; background:var(--card); }
${levels}
details { margin-top:.75rem; } summary { cursor:pointer; padding:.4rem 0; font-weight:600; }
footer { margin-top:3rem; color:var(--soft); font-size:.85rem; }
@media (max-width:40rem) {
  main { padding:1.25rem .9rem 3rem; } h1 { font-size:1.4rem; } th, td { padding:.4rem .55rem; } }
@media print { .tile, figure, section { break-inside:avoid; } }
"""

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>$title</title>
<style>$style</style></head>
<body><main>
<header><h1>$title</h1><p class="lead">$subtitle</p></header>
$body
<footer>Written by warmstart. This page is one file: it runs no script and fetches nothing.</footer>
</main></body></html>
""")


def page(title: str, subtitle: str, body: str) -> str:
    """The whole document. `title` and `subtitle` are plain text, `body` is HTML."""
    # Shades of the confusion matrix, as classes: a style attribute would need a weaker policy.
    levels = "\n".join(
        f".{kind}.h{level} {{ background:rgb(var(--{kind}) / {level * 7 + (4 if level else 0)}%); }}"
        for kind in ("hit", "miss")
        for level in range(9)
    )
    style = Template(STYLE).substitute(levels=levels)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return _PAGE.substitute(policy=policy, title=esc(title, 200), style=style, subtitle=esc(subtitle, 400), body=body)
